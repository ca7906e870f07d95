"""What commands print where stdout has no UTF-8, no room, or no reader."""

import io
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from layershuffle.commands.output import print_all_characters


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b"5 +- 1 caf\xe9 \\u732b ..."),
        ("utf-8", b"5 \xc2\xb1 1 caf\xe9 \xe7\x8c\xab \xe2\x80\xa6"),
        ("latin-1", b"5 \xb1 1 caf\xe9 \\u732b ..."),
    ],
)
def test_every_character_is_printed_somehow(monkeypatch, encoding, printed):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    print_all_characters()
    # The surrogate stands for a byte of a file's name that isn't UTF-8.
    print(end="5 ± 1 caf\udce9 猫 …", flush=True)
    assert buffer.getvalue() == printed


@pytest.mark.parametrize("args", [["list"], ["--help"], ["evaluate", "--help"]])
def test_a_full_disk_is_a_one_line_error(args):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "layershuffle", *args]
    with open("/dev/full", "w") as full_disk:
        process = subprocess.run(command, stdout=full_disk, stderr=subprocess.PIPE, env=environment, text=True)
    assert process.returncode == 1
    assert process.stderr.startswith("error: standard output ")
    assert len(process.stderr.splitlines()) == 1
