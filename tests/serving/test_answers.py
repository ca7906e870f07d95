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
    content = {"model": model.config, "data": {"class": "ImageFolders", "args": {}, "classes": CLASSES}}
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}, "layershuffle": content}, "m.ckpt"
    )
    draw(range(30))
    Path("pictures/empty.png").touch()
    Path("pictures/text.jpg").write_text("no picture")


def draw(numbers):
    Path("pictures").mkdir(exist_ok=True)
    for number in numbers:
        pixels = torch.randint(256, (9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(f"pictures/{number}.png")


class Local:
    """In place of a cluster: runs requests in this process, each in an order of its own that misses a layer."""

    window = 3

    def __init__(self, model, *_, **__):
        self.model, self.requests, self.running, self.most, self.failing = model, 0, 0, 0, ()
        Local.last = self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        assert not self.running

    async def submit(self, images):
        self.requests, number = self.requests + 1, self.requests
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001 * (number % 4))  # so that they don't end as they began
        finally:
            self.running -= 1
        if number in self.failing:
            raise UserError(f"request {number} was not done within 60 s")
        *order, missed = seeded(number).sample(range(4), 4)
        with torch.inference_mode():
            return Result(self.model(images, order).logits, Order(order), (missed,), 0.125, 0)


def lines(path="answers.jsonl"):
    """The model that the file names, and its answers by their pictures, each of which must have one."""
    about, *answers = map(json.loads, Path(path).read_text().splitlines())
    found = {answer["picture"]: answer for answer in answers}
    assert len(found) == len(answers)
    return about, found


def command(*more):
    serve_command(["m.ckpt", "--pictures", "pictures", "--answers", "answers.jsonl", "--top", "2", *more])


def check(answers, numbers=range(30)):
    """Each answer is what the model says in the order that ran, and the two files that aren't pictures are named."""
    loaded = layershuffle.load("m.ckpt")
    assert answers.keys() == {f"pictures/{name}" for name in ("empty.png", "text.jpg", *(f"{n}.png" for n in numbers))}
    for picture, answer in answers.items():
        if "unreadable" in answer:
            assert Path(picture).suffix == ".jpg" or picture == "pictures/empty.png"
            continue
        (expected,) = loaded.predict([Image.open(picture)], top=2, order=answer["order"])
        assert [(each["class"], each["probability"]) for each in answer["classes"]] == [
            (likely.name, pytest.approx(likely.probability, abs=1e-5)) for likely in expected
        ]
        assert answer["seconds"] > 0
        assert {*answer["missed"]} == {0, 1, 2, 3} - {int(step) for step in answer["order"].split()}
    assert sum("unreadable" in answer for answer in answers.values()) == 2


def test_pictures_are_classified_once_and_what_is_left_the_next_time(monkeypatch, capsys):
    """A line is cut in two, as by a power cut, and pictures are added; then only these are classified."""
    monkeypatch.setattr(serve, "Cluster", Local)
    command()
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "answers.jsonl: 32 pictures, 2 of which can't be read"
    assert "pictures/text.jpg can't be read as an image" in said.err
    assert Local.last.requests == 30
    assert Local.last.most <= 2 * Local.window
    about, answers = lines()
    assert about["model"]["name"] == "m"
    check(answers)

    whole = Path("answers.jsonl").read_text()
    Path("answers.jsonl").write_text(whole[:-30])
    draw(range(30, 33))
    command()
    assert "the last line of answers.jsonl was cut off" in capsys.readouterr().err
    cut = json.loads(whole.splitlines()[-1])
    assert Local.last.requests == 3 + ("unreadable" not in cut)
    check(lines()[1], range(33))

    command()
    assert Local.last.requests == 0
    check(lines()[1], range(33))


def test_after_ctrl_c_it_goes_on_where_it_was(monkeypatch):
    class Interrupted(Local):
        async def submit(self, images):
            if self.requests == 20:
                signal.raise_signal(signal.SIGINT)
            return await super().submit(images)

    monkeypatch.setattr(serve, "Cluster", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        command()
    _, before = lines()
    assert 10 < len(before) < 32
    monkeypatch.setattr(serve, "Cluster", Local)
    command()
    assert Local.last.requests == 30 - sum("order" in answer for answer in before.values())
    check(lines()[1])


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

    earlier = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(serve, "Cluster", Terminated)
    try:
        with pytest.raises(KeyboardInterrupt):
            command()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert 10 < len(lines()[1]) < 32


def test_requests_that_fail_leave_their_pictures_for_the_next_time(monkeypatch, capsys):
    class Failing(Local):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.failing = failing

    monkeypatch.setattr(serve, "Cluster", Failing)
    failing = {3, 20}
    with pytest.raises(UserError, match="2 of 32 pictures"):
        command()
    assert capsys.readouterr().err.count("was not done within 60 s") == 2
    assert len(lines()[1]) == 30
    draw(range(30, 60))
    failing = {*range(10, 100)}
    with pytest.raises(UserError, match="3 requests in a row"):
        command()
    assert 30 < len(lines()[1]) <= 40
    failing = ()
    command()
    check(lines()[1], range(60))


def test_what_cannot_be_appended_to_is_refused(monkeypatch, capsys, small):
    monkeypatch.setattr(serve, "Cluster", Local)
    arguments = ["m.ckpt", "--pictures", "pictures", "--answers", "answers.jsonl"]
    assert "give both, or neither" in fails(capsys, serve_command, *arguments[:3])
    assert "give both, or neither" in fails(capsys, serve_command, arguments[0], *arguments[3:])
    Path("answers.jsonl").write_text("my notes")
    assert "answers.jsonl is not a file of answers" in fails(capsys, serve_command, *arguments)
    Path("answers.jsonl").unlink()
    command()
    written = Path("answers.jsonl").read_text()
    Path("m.ckpt").rename("same.ckpt")
    content = torch.load("same.ckpt")
    content["state_dict"]["model.vit.head.bias"] += 1
    torch.save(content, "m.ckpt")
    assert "answers.jsonl has answers of another model (m)" in fails(capsys, serve_command, *arguments)
    assert Path("answers.jsonl").read_text() == written
    Path("answers.jsonl").write_text(written.replace('"picture"', '"image"', 1))
    assert "line 2 is not an answer" in fails(capsys, serve_command, "same.ckpt", *arguments[1:])


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
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout.readline() == "open\n"
        # As if the other one was writing its line right now.
        with Path("answers.jsonl").open("a") as file:
            file.write('{"picture": "half')
        error = fails(capsys, serve_command, "m.ckpt", "--pictures", "pictures", "--answers", "answers.jsonl")
        assert f"answers.jsonl is being written by process {other.pid} on " in error
        assert Path("answers.jsonl").read_text() == written + '{"picture": "half'
        with pytest.raises(UserError, match=f"process {other.pid} on "):
            EventLog("log.jsonl")
        other.communicate("\n")
    command()
    assert Path("answers.jsonl").read_text() == written
    EventLog("log.jsonl").close()


@pytest.mark.slow
def test_a_coordinator_that_is_killed_goes_on_where_it_was():
    """SIGKILL leaves whole files and no process; the same command does the rest on another cluster."""
    draw(range(600))
    arguments = [
        "m.ckpt",
        "--pictures",
        "pictures",
        "--answers",
        "answers.jsonl",
        "--top",
        "2",
        "--event_log",
        "log.jsonl",
    ]
    arguments += ["--nodes", "2", "--start_seconds", "300"]
    running = subprocess.Popen([sys.executable, "-m", "layershuffle", "serve", *arguments], stdout=subprocess.PIPE)
    output = Path("answers.jsonl")
    while not output.exists() or output.read_bytes().count(b"\n") < 20:
        assert running.poll() is None
        time.sleep(0.01)
    started = psutil.Process(running.pid).children(recursive=True)
    assert len(started) > 2
    running.kill()
    _, before = lines()
    assert 19 <= len(before) < 602
    log = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "ended" for event in log) >= sum("order" in answer for answer in before.values())

    subprocess.run([sys.executable, "-m", "layershuffle", "serve", *arguments], check=True, stdout=subprocess.DEVNULL)
    _, after = lines()
    assert {picture: after[picture] for picture in before} == before
    check(after, range(600))
    _, left = psutil.wait_procs(started, timeout=90)  # Ray's agents take longest to notice.
    assert not left
