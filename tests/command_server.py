"""A process that has imported everything, and forks to run a command as a process of its own.

A process takes 5 to 15 seconds to import PyTorch and Lightning, and the examples of the documentation are some sixty
commands. A command runs here as ``python -m layershuffle`` does, except for what happens during the imports.

``python command_server.py SOCKET`` is the server. ``CLIENT`` is the command that a shell finds as ``layershuffle``.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NoReturn

CLIENT = f'''#!{sys.executable} -ES
"""Has a command run by the server, with the standard streams, the folder and the environment of this process."""

import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["LAYERSHUFFLE_SERVER"])
    command = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(command).to_bytes(8)], [0, 1, 2])
    server.sendall(command)
    sys.exit(int(server.recv(8)))
'''


def start() -> str:
    """Start a server, which ends with this process. Returns the path of its socket."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = os.path.join(folder.name, "server")
    # The server prints nothing of its own, and a pipe that nobody reads could fill up.
    process = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.DEVNULL)
    atexit.register(process.terminate)
    while not os.path.exists(path):
        assert process.poll() is None, "the server of the examples' commands has ended"
        time.sleep(0.05)
    return path


def serve(path: str) -> None:
    """Run what clients send, each in a fork, until this process is ended or the one that started it is gone."""
    # Ctrl-C is for pytest, which ends this process. Commands have a handler of their own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    # What the commands import.
    for module in ("layershuffle.api.compose", "layershuffle.api.evaluate", "layershuffle.report"):
        importlib.import_module(module)
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
    """Run the command of a client in a fork, and send its exit code."""
    size, streams, _, _ = socket.recv_fds(client, 8, maxfds=3)
    sent = b""
    while len(sent) < int.from_bytes(size):
        sent += client.recv(1 << 16)
    child = os.fork()
    if child == 0:
        client.close()
        _run(*json.loads(sent), streams)
    _, status = os.waitpid(child, 0)
    client.sendall(str(os.waitstatus_to_exitcode(status) & 255).encode())
    os._exit(0)


def _run(args: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> NoReturn:
    """Become the command."""
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
    # As with python -m, the working folder comes first, in place of this file's.
    sys.path[0] = folder
    sys.argv = ["layershuffle", *args]

    from layershuffle.__main__ import main

    # Python ends this process as it does after any program: its exit code, a traceback, and what is to be done at exit.
    main()
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1])
