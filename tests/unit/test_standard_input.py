# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump on standard input gives the same output as in a file, and leaves no files behind."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional, Tuple

import pytest

from kvintro.errors import NoSuchSource, SourceError
from kvintro.source import spool
from kvintro.source.spool import spooled
from tests.memory_files import lime
from tests.synthetic import PAGE
from tests.unit.test_flattened import elf, packed


def flattened_elf() -> bytes:
    image = elf()
    return packed([(64, image[64:PAGE]), (PAGE, image[PAGE:]), (0, image[:64])])


def run(
    data: "bytes | BinaryIO", *arguments: str, directory: Optional[Path] = None, core: str = "-"
) -> Tuple[int, str, str]:
    """Run kvintro with this standard input: bytes through a pipe, or the file itself."""
    environment: Dict[str, str] = {**os.environ}
    if directory is not None:
        environment["TMPDIR"] = str(directory)
    how: Dict[str, Any] = {"input": data} if isinstance(data, bytes) else {"stdin": data}
    done = subprocess.run(
        [sys.executable, "-m", "kvintro", "-c", core, *arguments],
        capture_output=True,
        check=False,
        env=environment,
        **how,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("command", ["layout", "info", "translate ffffc90000001000 --walk", "ptdump --json"])
@pytest.mark.parametrize("make", [elf, flattened_elf])
def test_as_from_a_file(tmp_path: Path, make: Any, command: str) -> None:
    path, spool_to = tmp_path / "vmcore", tmp_path / "spool"
    path.write_bytes(make())
    spool_to.mkdir()
    code, out, err = run(b"", *command.split(), core=str(path))
    expected = code, out.replace(str(path), "standard input"), err
    assert code in (0, 4)
    # Columns are as wide as their content.
    found = run(make(), *command.split(), directory=spool_to)
    assert (found[0], found[1].split(), found[2]) == (expected[0], expected[1].split(), expected[2])
    with path.open("rb") as file:
        found = run(file, *command.split(), directory=tmp_path / "nowhere")
        assert (found[0], found[1].split()) == (expected[0], expected[1].split())
    assert list(spool_to.iterdir()) == []


def test_cut_anywhere() -> None:
    """As with files: opened and marked, or refused with one line and a hint."""
    data = flattened_elf()
    shown = 0
    for cut in random.Random(1).sample(range(4096, len(data)), 6):
        code, out, err = run(data[:cut], "layout")
        assert code in (0, 3, 4), err
        assert "internal error" not in err
        if code == 3:
            assert len(err.splitlines()) == 2
        else:
            assert "TRUNCATED" in out
            shown += 1
    image = elf()
    whole = packed([(0, image)])
    code, out, _ = run(whole[: len(whole) - 20], "layout")
    assert "TRUNCATED" in out
    assert code in (0, 4)


def test_a_file_that_was_read_before(tmp_path: Path) -> None:
    """The rest of the file is the dump: `(head -c N >/dev/null; kvintro -c - ...) < FILE`."""
    path = tmp_path / "vmcore"
    path.write_bytes(b"something else" + elf())
    with path.open("rb", buffering=0) as file:
        file.seek(14)
        assert run(file, "layout")[0] in (0, 4)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08" + bytes(100), "compressed with gzip"),
        (b"some text\n" * 100, "text file"),
        (bytes(9 << 20), "nothing but zeros"),
        (b"\x14\x20\x28\x01" + bytes(100), "a machine saved by Hyper-V"),
    ],
)
def test_what_is_no_dump(data: bytes, said: str) -> None:
    code, out, err = run(data, "info")
    assert (code, out) == (3, "")
    assert err.startswith("kvintro: standard input is ")
    assert said in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("data", [b"KDUMP", b"\x7fEL", b"makedumpfil", b"hello\n"])
def test_what_is_cut_off_within_its_mark(data: bytes) -> None:
    code, out, err = run(data, "info")
    assert (code, out) == (3, "")
    assert err.splitlines()[0] == "kvintro: standard input is too short to be a kernel dump"


def test_it_does_not_wait_for_the_end_of_what_is_no_dump() -> None:
    """The rest is not read, so that an endless stream ends."""
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        assert yes.stdout is not None
        assert run(yes.stdout, "info")[0] == 3  # type: ignore[arg-type]
        yes.stdout.close()
    assert yes.returncode != 0


def test_raw_memory_is_taken_when_it_is_said_to_be() -> None:
    code, _, err = run(b"x" + bytes(5 << 20), "--format-in", "raw", "info")
    assert code == 3
    assert "no VMCOREINFO" in err  # it was read to its end


def test_lime() -> None:
    code, _, err = run(lime([(0, bytes(PAGE))]), "info")
    assert code == 3
    assert "standard input: no VMCOREINFO" in err


def test_no_standard_input() -> None:
    command = ["sh", "-c", '"$0" -m kvintro -c - info <&-', sys.executable]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 3
    assert "standard input" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def read(data: bytes, **more: Any) -> BinaryIO:
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        try:
            at = 0
            while at < len(data):
                at += os.write(sender, data[at : at + 4096])
        finally:
            os._exit(0)
    os.close(sender)
    try:
        return spooled(receiver, more.get("check", lambda file: None))
    finally:
        os.close(receiver)
        os.waitpid(child, 0)


def test_zeros_take_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    data = b"begin" + bytes(32 << 20) + b"end" + bytes(5)
    with read(data) as file:
        assert file.read() == data
        assert os.fstat(file.fileno()).st_blocks * 512 < 8 << 20
        # Other processes can neither find nor read it.
        assert list(tmp_path.iterdir()) == []
        assert os.fstat(file.fileno()).st_mode & 0o077 == 0


def test_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(spool, "room_in", lambda directory: 1 << 20)
    with pytest.raises(SourceError, match=r"more than .* MB, which is the free space in") as raised:
        read(b"x" * (4 << 20))
    assert "TMPDIR" in raised.value.remedy
    assert list(tmp_path.iterdir()) == []
    size = (1 << 20) + spool._LOOK
    with read(b"x" * size) as file:
        assert len(file.read()) == size


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SourceError, match="No space left on device"):
        read(b"x" * (4 << 20))


def test_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    with pytest.raises(NoSuchSource, match="terminal"):
        spooled(terminal, lambda file: None)
    os.close(terminal)
    os.close(controller)


def test_a_pipe_named_as_a_file_is_told_how(tmp_path: Path) -> None:
    code, _, err = run(elf(), "info", core="/dev/stdin")
    assert code == 3
    assert "is a pipe" in err
    assert "-c -" in err
