"""Pictures of a folder that are classified over a cluster: again and again, until each has its line in the file."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import fails
from PIL import Image

import layershuffle
from layershuffle import UserError
from layershuffle.api import serve
from layershuffle.commands.serve import serve_command
from layershuffle.orders import Order, seeded
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.result import Result

CLASSES = ["ant", "bee", "cow", "doe", "elk"]


@pytest.fixture(autouse=True)
def folder(small, tmp_path, monkeypatch):
    """A working folder with a checkpoint, 30 pictures, and two files that only look like pictures."""
    monkeypatch.chdir(tmp_path)
    model = small()
    data = {"class": "ImageFolders", "args": {}, "classes": CLASSES}
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "layershuffle": {"model": model.config, "data": data},
    }
    torch.save(checkpoint, "m.ckpt")

    draw(range(30))
    Path("pictures/empty.png").touch()
    Path("pictures/text.jpg").write_text("no picture")


def draw(numbers):
    """Write a picture of random pixels for each of these numbers, into the folder ``pictures``."""
    Path("pictures").mkdir(exist_ok=True)
    for number in numbers:
        pixels = torch.randint(256, (9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(f"pictures/{number}.png")


class Local:
    """In place of a cluster: runs requests in this process, each in an order of its own that misses a layer.

    Attributes:
        last: the one that was made last, which tests ask what it did.
        requests: how many requests have come. They are numbered from 0.
        most: how many ran at a time, at most.
        failing: the numbers of those that fail.
    """

    window = 3

    def __init__(self, model, *_, **__):
        Local.last = self
        self.model = model
        self.requests = 0
        self.running = 0
        self.most = 0
        self.failing = ()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        assert not self.running

    async def submit(self, images):
        number = self.requests
        self.requests += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            # Not equally long, so that requests don't end in the sequence in which they began.
            await asyncio.sleep(0.001 * (number % 4))
        finally:
            self.running -= 1
        if number in self.failing:
            raise UserError(f"request {number} was not done within 60 s")

        *order, missed = seeded(number).sample(range(4), 4)
        with torch.inference_mode():
            logits = self.model(images, order).logits
        return Result(logits=logits, order=Order(order), missed=(missed,), seconds=0.125, bytes=0)


def read_answers():
    """What the file says of the model, and its answers by picture, of which each has one."""
    about, *answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    by_picture = {answer["picture"]: answer for answer in answers}
    assert len(by_picture) == len(answers)
    return about, by_picture


def command():
    """Classify what is left of the folder ``pictures``."""
    serve_command(["m.ckpt", "--pictures", "pictures", "--answers", "answers.jsonl", "--top", "2"])


def check(answers, numbers=range(30)):
    """Each answer is what the model says in the order that ran, and the two files that aren't pictures are named."""
    loaded = layershuffle.load("m.ckpt")
    not_pictures = {"pictures/empty.png", "pictures/text.jpg"}
    pictures = {f"pictures/{number}.png" for number in numbers}
    assert answers.keys() == not_pictures | pictures

    for path, answer in answers.items():
        if "unreadable" in answer:
            assert path in not_pictures
            continue
        assert path in pictures
        (expected,) = loaded.predict([Image.open(path)], top=2, order=answer["order"])
        for named, likely in zip(answer["classes"], expected, strict=True):
            assert named["class"] == likely.name
            assert named["probability"] == pytest.approx(likely.probability, abs=1e-5)
        assert answer["seconds"] > 0
        ran = {int(step) for step in answer["order"].split()}
        assert set(answer["missed"]) == {0, 1, 2, 3} - ran


def test_pictures_are_classified_once_and_what_is_left_the_next_time(monkeypatch, capsys):
    """A line is cut in two, as by a power cut, and pictures are added; then only these are classified."""
    monkeypatch.setattr(serve, "Cluster", Local)
    command()
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "answers.jsonl: 32 pictures, 2 of which can't be read"
    assert "pictures/text.jpg can't be read as an image" in printed.err
    assert Local.last.requests == 30
    assert Local.last.most <= 2 * Local.window
    about, answers = read_answers()
    assert about["model"]["name"] == "m"
    check(answers)

    whole = Path("answers.jsonl").read_text()
    Path("answers.jsonl").write_text(whole[:-30])
    draw(range(30, 33))
    command()
    assert "the last line of answers.jsonl was cut off" in capsys.readouterr().err
    # The three new pictures have run, and the one of the line, unless it was that of a file that can't be read.
    cut_off = json.loads(whole.splitlines()[-1])
    assert Local.last.requests == (3 if "unreadable" in cut_off else 4)
    _, answers = read_answers()
    check(answers, range(33))

    command()
    assert Local.last.requests == 0
    _, answers = read_answers()
    check(answers, range(33))


def test_after_ctrl_c_it_goes_on_where_it_was(monkeypatch):
    class Interrupted(Local):
        async def submit(self, images):
            if self.requests == 20:
                signal.raise_signal(signal.SIGINT)
            return await super().submit(images)

    monkeypatch.setattr(serve, "Cluster", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        command()
    _, before = read_answers()
    assert 10 < len(before) < 32

    monkeypatch.setattr(serve, "Cluster", Local)
    command()
    classified_before = sum("order" in answer for answer in before.values())
    assert Local.last.requests == 30 - classified_before
    _, answers = read_answers()
    check(answers)


def test_sigterm_acts_as_ctrl_c(monkeypatch):
    """Also where Ray has installed a handler of its own, which would print its threads."""

    class Terminated(Local):
        async def __aenter__(self):
            signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's handler was called"))
            return self

        async def submit(self, images):
            if self.requests == 20:
                signal.raise_signal(signal.SIGTERM)
            return await super().submit(images)

    earlier_handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(serve, "Cluster", Terminated)
    try:
        with pytest.raises(KeyboardInterrupt):
            command()
    finally:
        signal.signal(signal.SIGTERM, earlier_handler)
    _, answers = read_answers()
    assert 10 < len(answers) < 32


def test_requests_that_fail_leave_their_pictures_for_the_next_time(monkeypatch, capsys):
    failing = {3, 20}

    class Failing(Local):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.failing = failing

    monkeypatch.setattr(serve, "Cluster", Failing)
    with pytest.raises(UserError, match="2 of 32 pictures"):
        command()
    assert capsys.readouterr().err.count("was not done within 60 s") == 2
    _, answers = read_answers()
    assert len(answers) == 30

    # Ten more are answered, and then none, as if all nodes had gone.
    draw(range(30, 60))
    failing = set(range(10, 100))
    with pytest.raises(UserError, match="3 requests in a row"):
        command()
    _, answers = read_answers()
    assert 30 < len(answers) <= 40

    failing = set()
    command()
    _, answers = read_answers()
    check(answers, range(60))


def test_what_cannot_be_appended_to_is_refused(monkeypatch, capsys, small):
    monkeypatch.setattr(serve, "Cluster", Local)
    pictures = ["--pictures", "pictures"]
    answers = ["--answers", "answers.jsonl"]
    assert "give both, or neither" in fails(capsys, serve_command, "m.ckpt", *pictures)
    assert "give both, or neither" in fails(capsys, serve_command, "m.ckpt", *answers)

    output = Path("answers.jsonl")
    output.write_text("my notes")
    assert "answers.jsonl is not a file of answers" in fails(capsys, serve_command, "m.ckpt", *pictures, *answers)
    output.unlink()

    # The file has answers, and then there is another model under the name of theirs.
    command()
    written = output.read_text()
    Path("m.ckpt").rename("same.ckpt")
    content = torch.load("same.ckpt")
    content["state_dict"]["model.vit.head.bias"] += 1
    torch.save(content, "m.ckpt")
    error = fails(capsys, serve_command, "m.ckpt", *pictures, *answers)
    assert "answers.jsonl has answers of another model (m)" in error
    assert output.read_text() == written

    output.write_text(written.replace('"picture"', '"image"', 1))
    assert "line 2 is not an answer" in fails(capsys, serve_command, "same.ckpt", *pictures, *answers)


def test_two_commands_on_one_file(monkeypatch, capsys):
    """The second is refused in one line that names the first, and changes nothing; so with a log of events."""
    monkeypatch.setattr(serve, "Cluster", Local)
    command()
    written = Path("answers.jsonl").read_text()
    code = """
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.json_lines import JsonLines
with JsonLines("answers.jsonl", "model", "a file of answers"), EventLog("log.jsonl"):
    print("open", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        # As if the other one was writing its line right now.
        half_a_line = '{"picture": "half'
        with Path("answers.jsonl").open("a") as file:
            file.write(half_a_line)

        error = fails(capsys, serve_command, "m.ckpt", "--pictures", "pictures", "--answers", "answers.jsonl")
        assert f"answers.jsonl is being written by process {other.pid} on " in error
        assert Path("answers.jsonl").read_text() == written + half_a_line
        with pytest.raises(UserError, match=f"process {other.pid} on "):
            EventLog("log.jsonl")
        # It ends when its input has a line.
        other.communicate("\n")

    command()
    assert Path("answers.jsonl").read_text() == written
    EventLog("log.jsonl").close()


@pytest.mark.slow
def test_a_coordinator_that_is_killed_goes_on_where_it_was():
    """SIGKILL leaves whole files and no process; the same command does the rest on another cluster."""
    draw(range(600))
    program = [sys.executable, "-m", "layershuffle", "serve", "m.ckpt"]
    options = [
        "--pictures=pictures",
        "--answers=answers.jsonl",
        "--top=2",
        "--event_log=log.jsonl",
        "--nodes=2",
        "--start_seconds=300",
    ]
    coordinator = subprocess.Popen([*program, *options], stdout=subprocess.PIPE)
    # The first line is about the model, and each other one about a picture.
    output = Path("answers.jsonl")
    while not output.exists() or output.read_bytes().count(b"\n") < 20:
        assert coordinator.poll() is None
        time.sleep(0.01)
    started = psutil.Process(coordinator.pid).children(recursive=True)
    # The two nodes, and processes of Ray.
    assert len(started) > 2
    coordinator.kill()

    _, before = read_answers()
    assert 19 <= len(before) < 602
    events = [json.loads(line)["event"] for line in Path("log.jsonl").read_text().splitlines()]
    classified_before = sum("order" in answer for answer in before.values())
    assert events.count("ended") >= classified_before

    subprocess.run([*program, *options], check=True, stdout=subprocess.DEVNULL)
    _, after = read_answers()
    assert {picture: after[picture] for picture in before} == before
    check(after, range(600))
    # Ray's agents take longest to notice that the first coordinator has gone.
    _, left = psutil.wait_procs(started, timeout=90)
    assert not left
