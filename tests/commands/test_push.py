"""Uploading to the Hugging Face hub, of which a server on this machine takes the place."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers import fails

from layershuffle.checkpoints.export import export
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.commands.push import push_command
from layershuffle.results import ModelInfo


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as creating a repository and committing files to it takes.

    The user "me" may create repositories whose names begin with "me/", but there is no space for "me/full".
    """

    repositories: ClassVar = {}
    """By their names: a dictionary with "private", a bool, and "files", the content of each by its path."""

    def answer(self, content, status=200):
        """Answer with JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        preupload = re.fullmatch("/api/models/(.*)/preupload/main", self.path)
        commit = re.fullmatch("/api/models/(.*)/commit/main", self.path)
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif preupload:
            self.announce(preupload[1], json.loads(body)["files"])
        elif commit:
            self.commit(commit[1], [json.loads(line) for line in body.splitlines()])
        else:
            # The checks of a model card's metadata, which find nothing.
            self.answer({"errors": [], "warnings": []})

    def create(self, request):
        """Create a repository."""
        name = f"{request.get('organization') or 'me'}/{request['name']}"
        if not name.startswith("me/"):
            self.answer({"error": "You don't have the rights"}, 403)
            return
        if name == "me/full":
            self.answer({"error": "Private storage limit reached"}, 402)
            return
        url = f"{self.server.url}/{name}"
        if name in self.repositories:
            self.answer({"url": url, "error": "You already created this model repo"}, 409)
            return
        # Versions of huggingface_hub differ in how they ask for this.
        private = request.get("private", request.get("visibility") == "private")
        self.repositories[name] = {"private": private, "files": {}}
        self.answer({"url": url})

    def announce(self, name, files):
        """Say how files are to be uploaded to a repository: all within the commit."""
        assert name in self.repositories
        answers = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
        self.answer({"files": answers})

    def commit(self, name, lines):
        """Keep the files of a commit to a repository."""
        for line in lines:
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.repositories[name]["files"][line["value"]["path"]] = content
        url = f"{self.server.url}/{name}/commit/0"
        self.answer({"success": True, "commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})

    def do_GET(self):
        """Describe a repository."""
        about_model = re.fullmatch("/api/models/([^/]*/[^/]*).*", self.path)
        if not about_model or about_model[1] not in self.repositories:
            self.answer({"error": "Repository not found"}, 404)
            return
        name = about_model[1]
        private = self.repositories[name]["private"]
        self.answer({"id": name, "private": private, "sha": "0" * 40, "siblings": []})

    def log_message(self, *args):
        """Print nothing."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The ``repositories`` of a new hub, to which commands upload as its user "me"."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr(Hub, "repositories", {})
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    yield Hub.repositories
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(small, tmp_path):
    """A model that was exported to the folder "out"."""
    model = small()
    export(LoadedModel(model, ModelInfo(name="small", config=model.config)), tmp_path / "out")
    return model


def test_what_is_uploaded_is_what_was_exported(hub, exported, tmp_path, images, capsys):
    push_command(["out", "me/model"])
    assert "/me/model, which only you can see" in capsys.readouterr().out
    assert hub["me/model"]["private"] is True
    assert hub["me/model"]["files"].keys() == {path.name for path in Path("out").iterdir()}
    (tmp_path / "again").mkdir()
    for path, content in hub["me/model"]["files"].items():
        (tmp_path / "again" / path).write_bytes(content)
    with torch.inference_mode():
        assert torch.equal(load("again").model.eval()(images).logits, exported(images).logits)

    # A repository that is private stays so.
    push_command(["out", "me/model", "--public"])
    said = capsys.readouterr()
    assert "which only you can see" in said.out
    assert "the model was there already and is private" in said.err

    push_command(["out", "me/open", "--public"])
    assert "/me/open, which everybody can see" in capsys.readouterr().out
    assert hub["me/open"]["private"] is False


def test_what_is_no_part_of_an_export_is_not_uploaded(hub, exported, tmp_path, capsys):
    written = {path.name for path in Path("out").iterdir()}
    Path("secret.json").write_text("{}")
    Path("out/.env").write_text("TOKEN=1")
    Path("out/link.json").symlink_to(tmp_path / "secret.json")
    for private in ("notes.txt", "notes.md", "credentials.json", "secret.py", "other.safetensors"):
        Path("out", private).write_text("private")
    Path("out/.git").mkdir()
    Path("out/.git/config.json").write_text("{}")
    Path("out/sub").mkdir()
    Path("out/sub/config.json").write_text("{}")

    push_command(["out", "me/model"])
    assert hub["me/model"]["files"].keys() == written
    assert "link.json" in capsys.readouterr().err


def test_what_the_hub_objects_to_is_a_one_line_error(hub, exported, capsys, monkeypatch):
    Path("empty").mkdir()  # it holds no export
    for folder, name, complaint in [
        ("empty", "me/model", ".*empty"),
        ("out", "you/model", ".*you/model.* token"),
        ("out", "me/a b", ".*me/a b.* USER/NAME"),
        ("out", "me/full", r".*me/full.* 402.*Private storage limit reached"),
    ]:
        assert re.match(f"error: {complaint}", fails(capsys, push_command, folder, name))
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "run `hf auth login`, or set HF_TOKEN" in fails(capsys, push_command, "out", "me/model")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert fails(capsys, push_command, "out", "me/model").startswith("error: the hub can't be reached (ConnectError: ")
