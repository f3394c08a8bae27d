"""Starts `querywarden` by fork: from a process that has imported it, a start takes a hundredth of the time.

`querywarden()` is the path of a program that behaves as the console command does. The program hands its arguments, environment, folder
and open streams to a server, which forks; it forwards signals and ends as the command ends. Rules:

* The server imports modules and does nothing else: it has one thread, no open connection and no setting. `serve` checks the threads.
* What is read while modules are imported (`READ_AT_IMPORT`) must be as it is in the server. Otherwise the program becomes the console
  command itself, so that no test is lied to.
* Some tests start the console command (`CONSOLE`) all the same: those of the installed command, of signals, of memory, of the quick
  start, and all of `tests/crash`.
* The program runs this file with nothing but the standard library.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
import types
from pathlib import Path

CONSOLE = Path(sys.executable).with_name("querywarden")
READ_AT_IMPORT = ("COLUMNS", "OMP_NUM_THREADS", "PYTHONPATH", "NUMBA_CACHE_DIR", "NO_COLOR", "TERM")
COLUMNS = "300"
APART = ("consumers.__main__", "consumers.http.ext_authz")
"""Modules that the server does not import: the one runs the command line, the other starts threads (gRPC)."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STREAMS = 3


# ---------------------------------------------------------------------------------------------------- for tests


@functools.cache
def querywarden() -> Path:
    """The program; the server is started when it is first asked for, and ends with this process."""
    import atexit
    import shutil
    import subprocess
    import tempfile

    from examples.servers import die_with_parent

    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        return CONSOLE  # each process is measured from its start
    folder = Path(tempfile.mkdtemp(prefix="querywarden-fork-"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")} | {"COLUMNS": COLUMNS}
    reading, writing = os.pipe()
    root = Path(__file__).parents[2]
    call = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'tests')!r}]; from support import forked_command; "
    server = subprocess.Popen(
        [sys.executable, "-c", f"{call}forked_command.serve({str(folder / 'socket')!r}, {writing})"],
        env=environment, stdin=subprocess.DEVNULL, pass_fds=(writing,), preexec_fn=die_with_parent, cwd=root,
    )  # fmt: skip
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    os.close(writing)
    ready = os.read(reading, 1)
    os.close(reading)
    if not ready:
        raise RuntimeError(f"the server of forked commands ended with {server.wait()}")
    program = folder / "querywarden"
    as_started = {name: environment.get(name) for name in READ_AT_IMPORT}
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport forked_command\n"
        f"forked_command.ask({str(folder / 'socket')!r}, {str(CONSOLE)!r}, {as_started!r})\n"
    )
    program.chmod(0o700)
    return program


# ---------------------------------------------------------------------------------------------------- the program


def ask(address: str, console: str, as_started: dict[str, str | None]) -> None:
    """Let the server start the command, and end as it ends."""
    if any(os.environ.get(name) != value for name, value in as_started.items()):
        os.execv(console, [console, *sys.argv[1:]])
    asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [struct.pack("<q", len(asked))], list(range(_STREAMS)))
        server.sendall(asked)
        (pid,) = struct.unpack("<q", _read(server, 8))

        def forward(number: int, frame: types.FrameType | None) -> None:
            os.kill(pid, number)

        for number in SIGNALS:
            signal.signal(number, forward)
        for stream in range(_STREAMS):
            os.close(stream)  # they are the command's now: its reader sees when it ends
        (status,) = struct.unpack("<q", _read(server, 8))
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _read(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = connection.recv(size - len(got))
        if not more:
            raise EOFError("the other side is gone")
        got += more
    return got


# ---------------------------------------------------------------------------------------------------- the server


def serve(address: str, ready: int) -> None:
    """Answer calls until this process is killed. In a forked child it does not return: the child is the command."""
    import importlib
    import pkgutil

    for module in pkgutil.walk_packages(importlib.import_module("consumers").__path__, "consumers."):
        if module.name not in APART:
            importlib.import_module(module.name)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: a forked child would lack them"
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        os.write(ready, b"1")
        os.close(ready)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                break
            connection.close()
    _answer(connection)


def _answer(connection: socket.socket) -> None:
    """In a child: fork the command, wait for it, say how it ended. The command dies with the connection, as with its terminal."""
    from examples.servers import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 8, _STREAMS)
    arguments, environment, folder = json.loads(_read(connection, struct.unpack("<q", size)[0]))
    child = os.fork()
    if child == 0:
        die_with_parent()
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = [str(CONSOLE), *arguments]
        from consumers import cli

        cli.main()
        return
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    try:
        connection.sendall(struct.pack("<q", child))
        with selectors.DefaultSelector() as either:
            either.register(ended, selectors.EVENT_READ)
            either.register(connection, selectors.EVENT_READ)
            if all(key.fileobj is connection for key, _ in either.select()):
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        connection.sendall(struct.pack("<q", status))
    except OSError:
        os.kill(child, signal.SIGKILL)
    os._exit(0)
