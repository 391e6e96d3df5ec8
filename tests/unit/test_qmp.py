# SPDX-License-Identifier: LGPL-2.1-or-later
"""Peers that are not QEMU: one line and a remedy, whatever they send or do not send."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from kvintro.cli import main
from kvintro.errors import NotInDump
from kvintro.source import guest, qmp
from kvintro.source.physical import Extent

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


#: The peer's behaviour, and the expected message.
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
    """A socket that sends the same to every client."""
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
        monkeypatch.setattr(qmp, "_ANSWER", 0.2)
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


# Malicious peers that greet like QEMU

Answer = Callable[[socket.socket, Dict[str, Any]], None]


def guest_that(answer: Answer) -> Talk:
    """A peer that greets, and answers every command with a function."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as commands:
            for line in commands:
                answer(connection, json.loads(line))

    return talk


def returns(connection: socket.socket, value: object) -> None:
    connection.sendall(json.dumps({"return": value}).encode() + b"\r\n")


def after(count: int, harm: Callable[[socket.socket], None]) -> Talk:
    """Answers a few commands correctly, then misbehaves."""
    asked: List[int] = []

    def answer(connection: socket.socket, command: Dict[str, Any]) -> None:
        asked.append(1)
        if len(asked) > count:
            harm(connection)
        elif command["execute"] == "human-monitor-command":
            returns(connection, MTREE)
        else:
            returns(connection, {})

    return guest_that(answer)


def mtree(*ranges: str) -> str:
    lines = [f"  {bounds} (prio 0, {kind}): pc.ram" for bounds, _, kind in (r.partition(" ") for r in ranges)]
    view = ["FlatView #0", ' AS "memory", root: system', " Root memory region: system", *lines]
    return "\r\n".join(view) + "\r\n\r\nFlatView #1\r\n Root memory region: (none)\r\n"


MTREE = mtree("0000000000000000-000000000fffffff ram")
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE"}\r\n'


def forever(data: bytes) -> Callable[[socket.socket], None]:
    def harm(connection: socket.socket) -> None:
        piece = data * ((1 << 16) // len(data) + 1)
        while True:
            connection.sendall(piece)

    return harm


def once(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


HARM: Dict[str, "tuple[Callable[[socket.socket], None], str]"] = {
    "too many events": (forever(EVENT), "too many events"),
    "short events": (forever(b'{"event":1}\n'), "too many events"),
    "a line without end": (forever(b"x"), "KB"),
    "an answer without end": (forever(b'{"return": "'), "KB"),
    "blank lines": (forever(b"\r\n"), "not QMP"),
    "greetings": (forever(GREETING), "not QMP"),
    "deep": (once(b"[" * 60000 + b"\n"), "not QMP"),
    "a long number": (once(b'{"return": 1' + b"0" * 60000 + b"}\r\n"), ""),
    "an error": (once(b'{"error": {"class": "GenericError", "desc": "\\u001b[2Jno"}}\r\n'), ""),
    "a list": (once(b'["return"]\r\n'), "not QMP"),
    "hangs up": (lambda connection: connection.shutdown(socket.SHUT_RDWR), "closed the connection"),
}


@pytest.mark.parametrize("when", [0, 2, 4])
@pytest.mark.parametrize("kind", HARM)
def test_harm_after_the_greeting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, when: int
) -> None:
    """The command ends by itself with one line; unrequested data is read only up to a limit."""
    harm, expected = HARM[kind]
    sent: List[int] = []

    def counted(connection: socket.socket) -> None:
        class Counting:
            def sendall(self, data: bytes) -> None:
                sent.append(len(data))
                connection.sendall(data)

            shutdown = staticmethod(connection.shutdown)

        harm(Counting())  # type: ignore[arg-type]

    with listening(tmp_path / "qmp", after(when, counted)):
        code = main(["--qemu", str(tmp_path / "qmp"), "info"])
    out, err = capsys.readouterr()
    what, _ = err.splitlines()
    assert (code, out) == (3, "")
    assert expected in what and "internal" not in what
    assert err.isascii() and "\x1b" not in err
    # Its limits, and the data in the socket's buffers.
    assert sum(sent) < qmp._MAX_EVENTS + (4 << 20)


def test_ranges_without_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = mtree(*(f"{at << 16:016x}-{(at << 16) + 4095:016x} ram" for at in range(50000)))

    def answer(connection: socket.socket, command: Dict[str, Any]) -> None:
        returns(connection, many if command.get("arguments") else {})

    with listening(tmp_path / "qmp", guest_that(answer)):
        code = main(["--qemu", str(tmp_path / "qmp"), "info"])
    assert code == 3
    assert "lists 50000 ranges" in capsys.readouterr().err.splitlines()[0]


def test_memory_without_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exabyte of zeros is searched up to a limit, and the message says so."""
    monkeypatch.setattr(guest, "_SEARCH_BY_MONITOR", 1 << 20)
    tree = mtree("0000000000000000-0fffffffffffffff ram")
    asked: List[int] = []

    def answer(connection: socket.socket, command: Dict[str, Any]) -> None:
        line = command.get("arguments", {}).get("command-line", "")
        if command["execute"] == "getfd":
            connection.sendall(b'{"error": {"desc": "no"}}\n')
        elif line.startswith("xp /"):
            asked.append(int(line[4:].partition("xb")[0]))
            returns(connection, "0000000000000000:" + " 0x00" * asked[-1])
        else:
            returns(connection, tree)

    with listening(tmp_path / "qmp", guest_that(answer)):
        code = main(["--qemu", str(tmp_path / "qmp"), "info"])
    out, err = capsys.readouterr()
    assert (code, out) == (3, "")
    assert "zeros" in err.splitlines()[0]  # a guest with TDX looks like that
    assert sum(asked) < 4 << 20


# The memory of a guest


class FakeMonitor:
    """QEMU's answers for memory from a function."""

    def __init__(self, content: Callable[[int], int], at_host: "Dict[int, int] | None" = None) -> None:
        self.content, self.at_host, self.lines = content, at_host or {}, 0

    def command_line(self, line: str, *, limit: int = 1 << 16) -> str:
        name, *words = line.split()
        address = int(words[-1], 16)
        if name == "gpa2hva":
            if address not in self.at_host:
                raise qmp.Refused("no memory")
            return f"Host virtual address for {address:#x} (pc.ram) is {self.at_host[address]:#x}\r\n"
        size = int(words[0][1:-2])
        self.lines += 1
        text = ""
        for at in range(address, address + size, 8):
            last = min(at + 8, address + size)
            text += f"{at:016x}: " + " ".join(f"0x{self.content(b):02x}" for b in range(at, last)) + "\r\n"
        assert len(json.dumps({"return": text})) < limit
        return text

    def close(self) -> None:
        pass


def pattern(address: int) -> int:
    return (address * 7 + (address >> 8) + (address >> 16)) & 0xFF


def expected(address: int, size: int) -> bytes:
    return bytes(map(pattern, range(address, address + size)))


def test_memory_by_the_monitor() -> None:
    ram = [Extent(0x1000, 0x9000, 0), Extent(0xA000, 0x1000, 0), Extent(0x100000, 0x8000, 0)]
    memory = guest.Guest(FakeMonitor(pattern), ram, 0)  # type: ignore[arg-type]
    assert not memory.direct
    for address, size in ((0x1000, 0x9000), (0x9FFD, 7), (0x1003, 1), (0x100000, 0x8000)):
        assert memory.read(address, size) == expected(address, size)
    for address, size in ((0xFFF, 2), (0xAFFF, 2), (0x200000, 1)):
        with pytest.raises(NotInDump):
            memory.read(address, size)
    found = b"".join(bytes(data) for _, data in memory.pieces())
    assert found == b"".join(expected(e.address, e.size) for e in ram)


@pytest.mark.parametrize("lies", [False, True])
def test_memory_in_the_process(lies: bool) -> None:
    """It is read directly only if it equals the monitor's data, because the process may not be QEMU."""
    import ctypes

    base = 0x40000
    held = ctypes.create_string_buffer(expected(base, 0x4000), 0x4000)
    monitor = FakeMonitor((lambda at: pattern(at) ^ 1) if lies else pattern, {base: ctypes.addressof(held)})
    memory = guest.Guest(monitor, [Extent(base, 0x4000, 0)], os.getpid())  # type: ignore[arg-type]
    assert memory.direct is not lies
    monitor.lines = 0
    data = memory.read(base + 5, 0x3000)
    assert data == (bytes(b ^ 1 for b in expected(base + 5, 0x3000)) if lies else expected(base + 5, 0x3000))
    assert bool(monitor.lines) is lies


def test_only_ram_and_rom_of_the_address_space_memory_are_read() -> None:
    text = mtree(
        "0000000000000000-000000000009ffff ram",
        "00000000000a0000-00000000000bffff i/o",
        "00000000000c0000-00000000000fffff rom",
        "0000000100000000-000000013fffffff nv-ram",
    )
    other = text.replace('"memory"', '"memory-of-a-device"').replace("ram", "rom")
    assert list(guest._ranges(other + text)) == [
        (0, 0xA0000),
        (0xC0000, 0x100000),
        (0x100000000, 0x140000000),
    ]
