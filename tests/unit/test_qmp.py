# SPDX-License-Identifier: LGPL-2.1-or-later
"""What listens at a socket and is not QEMU: one line and a remedy, whatever it says or does not say."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest

from kvintro.cli import main
from kvintro.source import live

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 9}}, "capabilities": []}}\r\n'
Talk = Callable[[socket.socket], None]


def say(data: bytes) -> Talk:
    return lambda connection: connection.sendall(data)


def flood(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * (1 << 16))


def never_end_the_line(connection: socket.socket) -> None:
    connection.sendall(GREETING[:7])
    while True:
        connection.sendall(b" " * (1 << 16))


def wait(connection: socket.socket) -> None:
    connection.recv(1)


def half_a_line(connection: socket.socket) -> None:
    connection.sendall(GREETING[:30])
    connection.recv(1)


#: What it does, and what is said of it.
TALKS: Dict[str, "tuple[Talk, str]"] = {
    "noise": (say(bytes(range(256))), "does not speak QMP"),
    "web server": (say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak QMP"),
    "other JSON": (say(b"[1, 2]\n"), "does not speak QMP"),
    "endless": (flood, "does not speak QMP"),
    "endless line": (never_end_the_line, "does not speak QMP"),
    "hangs up": (lambda connection: None, "closes the connection"),
    "silent": (wait, "one client at a time"),
    "half a greeting": (half_a_line, "one client at a time"),
    "greets and hangs up": (say(GREETING), "cannot be read"),
}


@contextlib.contextmanager
def listening(path: Path, talk: Talk) -> Iterator[None]:
    """A socket whose every client is told the same."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(8)

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as connection:
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("kind", TALKS)
def test_what_is_no_qemu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    talk, expected = TALKS[kind]
    if expected == "one client at a time":
        monkeypatch.setattr(live, "_ANSWER", 0.2)
    with listening(tmp_path / "qmp", talk):
        code = main(["--qemu", str(tmp_path / "qmp"), "info"])
    out, err = capsys.readouterr()
    what, hint = err.splitlines()
    assert (code, out) == (3, "")
    assert expected in what
    assert "Errno" not in what or kind == "greets and hangs up"
    assert "-qmp" in hint


def test_a_file_is_no_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.touch()
    assert main(["--qemu", str(path), "info"]) == 3
    assert "Connection refused" in capsys.readouterr().err.splitlines()[0]
