# SPDX-License-Identifier: LGPL-2.1-or-later
"""What code that a dump managed to run could do: the kernel and another process judge.

A kvintro whose reader of dumps is replaced tries everything, with and without the sandbox.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import pty
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from tests.conftest import VMCORES

SAMPLE = VMCORES / "debian-6.12/core.kdump"
_ATTACKS = """
import ctypes, fcntl, json, os, socket, subprocess, sys
from kvintro import cli
from kvintro.source import core

place, port = sys.argv[1], int(sys.argv[2])
LIBC = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def connect(family, address):
    with socket.socket(family) as connection:
        connection.connect(address)

ATTACKS = {
    "make": lambda: open(place + "/made", "w"),
    "write": lambda: open(place + "/written", "r+").write("changed"),
    "remove": lambda: os.unlink(place + "/removed"),
    "rename": lambda: os.rename(place + "/renamed", place + "/other"),
    "link": lambda: os.link(place + "/written", place + "/linked"),
    "symlink": lambda: os.symlink("/", place + "/symlink"),
    "directory": lambda: os.mkdir(place + "/directory"),
    "program": lambda: subprocess.run(["touch", place + "/touched"], check=True, stderr=subprocess.DEVNULL),
    "unix": lambda: connect(socket.AF_UNIX, place + "/socket"),
    "tcp": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
    "io_uring": lambda: checked(LIBC.syscall(425, 1, ctypes.create_string_buffer(120))),
    "trace": lambda: checked(LIBC.ptrace(0x4206, os.getppid(), 0, 0)),  # PTRACE_SEIZE, which stops nothing
    "type": lambda: fcntl.ioctl(0, 0x5412, b"x"),
}
HARMLESS = {
    "read": lambda: open(place + "/written").read(),
    "null": lambda: open("/dev/null", "w"),
    "temporary": lambda: __import__("tempfile").TemporaryFile(),
}

def outcome(attempt):
    try:
        attempt()
    except (OSError, subprocess.CalledProcessError) as error:
        return getattr(error, "errno", None) or "failed"
    return "done"

def instead(*_, **__):
    print(json.dumps({name: outcome(each) for name, each in {**HARMLESS, **ATTACKS}.items()}), flush=True)
    os._exit(0)

core.open_core = instead
sys.argv = ["kvintro", *sys.argv[3:]]
cli.main()
"""
HARMLESS = {"read", "null", "temporary"}
#: Makes the kernel answer as if it lacked a feature: refuses system calls with numbers from sys.argv[1]
#: to sys.argv[2], whose first argument is sys.argv[3], or any with -1.
_WITHOUT = """
import ctypes, struct, sys
LIBC = ctypes.CDLL(None, use_errno=True)
first, last, argument = (int(word) for word in sys.argv[1:4])
del sys.argv[1:4]
code = b"".join(struct.pack("=HBBI", *each) for each in (
    (0x20, 0, 0, 0),                                # load the number of the call
    (0x35, 0, 4, first),                            # if it is at least this,
    (0x25, 3, 0, last),                             # and not more than this,
    (0x20, 0, 0, 16),                               # load the first argument
    (0x15, 0, 1 if argument >= 0 else 0, argument & 0xFFFFFFFF),
    (0x06, 0, 0, 0x00050000 | 38),                  # ENOSYS
    (0x06, 0, 0, 0x7FFF0000),                       # else allow it
))
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))
assert LIBC.prctl(38, 1, 0, 0, 0) == 0              # PR_SET_NO_NEW_PRIVS
assert LIBC.prctl(22, 2, ctypes.byref(Program(7, code)), 0, 0) == 0  # PR_SET_SECCOMP
"""
_PRCTL = {"x86_64": 157, "aarch64": 167}.get(platform.machine(), 0)
#: By feature: the arguments of _WITHOUT.
LACKING = {"landlock": ("444", "446", "-1"), "seccomp": (str(_PRCTL), str(_PRCTL), "22")}


def _landlock() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(444, None, ctypes.c_size_t(0), 1))  # landlock_create_ruleset(2)


needs_landlock = pytest.mark.skipif(
    _landlock() < 3 or platform.machine() not in ("x86_64", "aarch64"),
    reason="this kernel has no Landlock (version 3, Linux 6.2)",
)


@pytest.fixture()
def place(tmp_path: Path) -> Path:
    """A directory with the targets of the attacks."""
    found = tmp_path / "place"
    found.mkdir()
    for name in ("written", "removed", "renamed"):
        (found / name).write_text("as before")
    return found


@pytest.fixture()
def terminal() -> Iterator[int]:
    leader, follower = pty.openpty()
    yield follower
    os.close(leader)
    os.close(follower)


def attacked(place: Path, tmp_path: Path, terminal: int, *options: str, lacks: str = "") -> Dict[str, Any]:
    """The outcome of each attack; ``reached`` are the families of sockets that were connected to.

    :param lacks: the feature in :data:`LACKING` that the kernel seems not to have.
    """
    with closing(socket.socket(socket.AF_UNIX)) as unix, closing(socket.socket()) as tcp:
        unix.bind(str(place / "socket"))
        tcp.bind(("127.0.0.1", 0))
        for listener in (unix, tcp):
            listener.listen()
            listener.setblocking(False)
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        run = subprocess.run(
            [
                *(sys.executable, "-c", (_WITHOUT if lacks else "") + _ATTACKS, *LACKING.get(lacks, ())),
                *(str(place), str(tcp.getsockname()[1]), "-c", str(SAMPLE), *options),
            ],
            env={**os.environ, "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            stdin=terminal,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found: Dict[str, Any] = json.loads(run.stdout)
        found["reached"] = [listener.family.name for listener in (unix, tcp) if _was_reached(listener)]
        return found


def _was_reached(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@needs_landlock
def test_a_dump_that_runs_code_changes_nothing(place: Path, tmp_path: Path, terminal: int) -> None:
    before = sorted(path.name for path in place.iterdir())
    found = attacked(place, tmp_path, terminal, "layout")
    assert found.pop("reached") == []
    assert {name for name, outcome in found.items() if outcome == "done"} == HARMLESS
    (place / "socket").unlink()
    assert sorted(path.name for path in place.iterdir()) == before
    assert {path.read_text() for path in place.iterdir()} == {"as before"}


def test_without_the_sandbox_the_attacks_work(place: Path, tmp_path: Path, terminal: int) -> None:
    """So they are attacks."""
    found = attacked(place, tmp_path, terminal, "--no-sandbox", "layout")
    assert found["reached"] == ["AF_UNIX", "AF_INET"]
    # Systems may forbid the first three to all processes.
    skipped = {"io_uring", "trace", "type", "reached"}
    rest = {name: outcome for name, outcome in found.items() if name not in skipped}
    assert set(rest.values()) == {"done"}
    assert {"made", "other", "touched", "directory"} < {path.name for path in place.iterdir()}


@needs_landlock
def test_without_landlock(place: Path, tmp_path: Path, terminal: int) -> None:
    """Sockets and the terminal are refused all the same; the command runs, and files are not protected."""
    found = attacked(place, tmp_path, terminal, "layout", lacks="landlock")
    assert found.pop("reached") == []
    assert {name for name, outcome in found.items() if outcome != "done"} >= {
        "unix",
        "tcp",
        "io_uring",
        "type",
    }
    assert {"made", "touched", "directory"} < {path.name for path in place.iterdir()}


@needs_landlock
def test_without_seccomp(place: Path, tmp_path: Path, terminal: int) -> None:
    """Files are protected all the same; the command runs, and sockets are not refused."""
    found = attacked(place, tmp_path, terminal, "layout", lacks="seccomp")
    assert "AF_INET" in found.pop("reached")
    done = {name for name, outcome in found.items() if outcome == "done"}
    assert done - {"unix", "tcp", "io_uring", "trace", "type"} == HARMLESS


@needs_landlock
def test_output_is_written_where_it_should_be(place: Path, tmp_path: Path, terminal: int) -> None:
    """The directory of -o can be written, others still cannot."""
    out = tmp_path / "out"
    out.mkdir()
    found = attacked(place, tmp_path, terminal, "layout", "-o", str(out / "file"))
    assert {name for name, outcome in found.items() if outcome == "done"} == HARMLESS
    (tmp_path / "link").symlink_to(out / "behind")
    for name in ("out/file", "link"):
        run = subprocess.run(
            [sys.executable, "-m", "kvintro", "-c", SAMPLE, "kaslr", "-o", tmp_path / name], check=False
        )
        assert run.returncode == 0
    assert (out / "file").read_text() == (out / "behind").read_text() != ""


@needs_landlock
@pytest.mark.parametrize("lacks", LACKING)
def test_an_old_kernel_gives_the_same_answer(lacks: str) -> None:
    program = "import sys; from kvintro.cli import main; sys.exit(main())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", start + program, *words, "-c", SAMPLE, "kaslr"],
            capture_output=True,
            check=False,
        )
        for start, words in (("", ()), (_WITHOUT, LACKING[lacks]))
    ]
    assert runs[0].stdout == runs[1].stdout != b""
    assert [run.returncode for run in runs] == [0, 0]
    assert runs[0].stderr == runs[1].stderr == b""


@pytest.mark.parametrize("command", ["layout", "check", "diff"])
def test_commands_answer_the_same(command: str) -> None:
    words = ["diff", str(SAMPLE), str(SAMPLE)] if command == "diff" else ["-c", str(SAMPLE), command]
    runs = [
        subprocess.run([sys.executable, "-m", "kvintro", *words, *option], capture_output=True, check=False)
        for option in ([], ["--no-sandbox"])
    ]
    assert runs[0].stdout == runs[1].stdout != b""
    assert [run.returncode for run in runs] == [0, 0]
    assert runs[0].stderr == runs[1].stderr
