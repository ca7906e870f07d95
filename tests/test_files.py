"""Files are written whole, under names that nobody can foresee, and by one process at a time."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest

from layershuffle import UserError
from layershuffle.files import WriterLock, append_whole, read_yaml, write_whole

HOLD = """
import sys
from layershuffle.files import WriterLock
with WriterLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes tmp_path / "run"."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_told_of_the_first(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in ("run", "link"):
        with pytest.raises(UserError, match=rf"is being written by process {holder.pid} on ") as error:
            WriterLock(tmp_path / name)
        assert "\n" not in str(error.value)

    with WriterLock(tmp_path / "another run"):
        pass


def test_a_killed_writer_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with WriterLock(tmp_path / "run"):
        pass
    assert sorted(os.listdir(tmp_path)) == []


def test_a_lock_is_for_one_part_of_a_process(tmp_path):
    with WriterLock(tmp_path / "run"), pytest.raises(UserError, match="another part of this process"):
        WriterLock(tmp_path / "run")

    # It may be closed twice.
    lock = WriterLock(tmp_path / "run")
    lock.close()
    lock.close()


def test_a_lock_that_was_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    """Its last holder may remove the file after it was opened and before it is locked."""
    lockf = fcntl.lockf
    removals = iter([True])

    def remove_once(file, how):
        if next(removals, False):
            (tmp_path / ".run.lock").unlink()
        lockf(file, how)

    monkeypatch.setattr("fcntl.lockf", remove_once)
    with WriterLock(tmp_path / "run"):
        assert (tmp_path / ".run.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with WriterLock(tmp_path / "run"):
        pass
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_link_in_place_of_a_temporary_file_is_not_followed(tmp_path):
    """Somebody else has put links to a file of the user wherever it could be expected."""
    folder = tmp_path / "shared"
    folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in (f".results.json.{os.getpid()}", ".results.json.tmp", ".results.json"):
        (folder / name).symlink_to(victim)
    (folder / "results.json").symlink_to(victim)
    write_whole(folder / "results.json", "new")
    assert victim.read_text() == "untouched"
    assert (folder / "results.json").read_text() == "new"
    assert not (folder / "results.json").is_symlink()


def test_a_written_file_has_the_usual_permissions(tmp_path):
    earlier = os.umask(0o022)
    try:
        write_whole(tmp_path / "file", "content")
    finally:
        os.umask(earlier)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("trainer: {max_epochs: 1}\ndata: {}\ntrainer: {max_epochs: 3}\n")
    with pytest.raises(UserError, match=r"run\.yaml .*line 3 .*trainer"):
        read_yaml(path)

    # What a merge key brings may be changed, and a number and its text are two keys.
    path.write_text("a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, y: 3}\n1: 4\n'1': 5\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}, 1: 4, "1": 5}


@contextmanager
def no_file_above(size):
    """The system writes the first so many bytes of a file, and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_can_be_appended_only_in_part_leaves_a_file_as_it_was(tmp_path):
    old = tmp_path / "old.csv"
    new = tmp_path / "new.csv"
    append_whole(old, "step,loss\n")

    with no_file_above(30):
        for path in (old, new):
            with pytest.raises(UserError, match=rf"{path.name} could not be written: "):
                append_whole(path, "1,0.5\n" * 100)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "step,loss\n"

    append_whole(old, "1,0.5\n")
    assert old.read_text() == "step,loss\n1,0.5\n"


def test_a_lock_that_a_full_disk_prevents_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(UserError, match="No space left on device; free some space and try again"):
            WriterLock(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with WriterLock(tmp_path / "run"):
        pass
