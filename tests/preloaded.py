"""Processes of Python that need not import anything: forks of one that has imported all they need.

A process takes 5 to 15 seconds to import PyTorch and Lightning, and the tests and the examples of the documentation
are some hundred of them. What runs here runs as in a process of its own, except for what happens during the imports.
Of signals, SIGINT and SIGTERM reach it.

``python preloaded.py SOCKET`` is the server that forks.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NoReturn

CLIENT = '''#!{executable} -ES
"""Has the server run what Python is told to, with the streams, the folder and the environment of this process."""

import json, os, signal, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    command = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(command).to_bytes(8)], [0, 1, 2])
    server.sendall(command)
    fork = int(server.recv(8))
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda number, frame: os.kill(fork, number))
    code = int(server.recv(8))
# What a signal has ended is seen to end by it.
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
'''


@cache
def python() -> str:
    """The path of a program that takes what ``python`` does: ``-P``, and a script, a module (``-m``) or code (``-c``).

    The first call starts the server, which ends with this process.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = os.path.join(folder.name, "server")
    # The server prints nothing of its own, and a pipe that nobody reads could fill up.
    process = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.DEVNULL)
    atexit.register(process.terminate)
    while not os.path.exists(path):
        assert process.poll() is None, "the server has ended"
        time.sleep(0.05)

    client = Path(folder.name, "python")
    client.write_text(CLIENT.format(executable=sys.executable, socket=path))
    client.chmod(0o755)
    return str(client)


def serve(path: str) -> None:
    """Run what clients send, each in a fork, until this process is ended or the one that started it is gone."""
    # Ctrl-C is for pytest, which ends this process. Commands have a handler of their own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    # What the commands import, and the images of characters, which take seconds to draw and are always the same.
    for module in ("layershuffle.api.compose", "layershuffle.api.evaluate", "layershuffle.report", "timm.models"):
        importlib.import_module(module)
    importlib.import_module("layershuffle.data.glyphs").all_drawn()
    # Forks don't look for garbage among what has been imported, which takes seconds when they end.
    gc.freeze()

    with socket.socket(socket.AF_UNIX) as listener:
        # A client that finds the socket must find someone who listens.
        listener.bind(f"{path}.new")
        listener.listen()
        os.rename(f"{path}.new", path)
        listener.settimeout(5)
        while os.getppid() == parent:
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            # The fork waits for the command and tells its exit code, so that this process can go on at once.
            if os.fork() == 0:
                listener.close()
                _answer(client)
            client.close()
            _reap()


def _reap() -> None:
    """Forget the forks that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def _answer(client: socket.socket) -> None:
    """Run what a client sends in a fork, and tell it the fork's number and, when it has ended, its exit code."""
    size, streams, _, _ = socket.recv_fds(client, 8, maxfds=3)
    sent = b""
    while len(sent) < int.from_bytes(size):
        sent += client.recv(1 << 16)
    child = os.fork()
    if child == 0:
        client.close()
        _run(*json.loads(sent), streams)
    client.sendall(f"{child:8}".encode())
    _, status = os.waitpid(child, 0)
    client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _run(args: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> NoReturn:
    """Become what Python is told to run."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Python's own objects know what kind of file the server's streams were.
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)

    # In place of this file's folder come the folders that Python looks in first: with -P those of PYTHONPATH alone.
    folders = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if args[0] == "-P":
        args = args[1:]
    elif args[0] in ("-c", "-m"):
        folders.insert(0, folder)
    else:
        folders.insert(0, os.path.dirname(os.path.abspath(args[0])))
    sys.path[:1] = folders

    # Python ends this process as it does after any program: its exit code, a traceback, and what is to be done at exit.
    first, *rest = args
    if first == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        runpy.run_path(first, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1])
