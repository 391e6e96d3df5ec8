# SPDX-License-Identifier: LGPL-2.1-or-later
"""Truncated and damaged kdumps: no process dies of a signal, and no lost page reads as zeros."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional, Set, Tuple

import pytest

from kvintro.errors import NotADump, NotInDump, SourceError
from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.conftest import VMCORES

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

SAMPLE = VMCORES / "debian-6.12/core.kdump"
PAGE = 4096

pytestmark = pytest.mark.skipif(not SAMPLE.exists(), reason="the sample dump is not there")


def _descriptor_of(data: bytes, address: int) -> int:
    """The offset of a page's descriptor in a kdump."""
    _, block_size, sub_blocks, bitmap_blocks = struct.unpack_from("<IiiI", data, 424)
    table = (1 + sub_blocks + bitmap_blocks) * block_size
    bitmap = data[table - bitmap_blocks * block_size // 2 : table]
    byte, bit = divmod(address // PAGE, 8)
    before = sum(bin(b).count("1") for b in bitmap[:byte]) + bin(bitmap[byte] & (1 << bit) - 1).count("1")
    return int(table + 24 * before)


def _data_of(data: bytes, address: int) -> Tuple[int, int]:
    return struct.unpack_from("<qI", data, _descriptor_of(bytes(data), address))


@pytest.fixture(scope="module")
def whole() -> bytes:
    return SAMPLE.read_bytes()


def test_pages_behind_the_cut_are_not_there(whole: bytes, tmp_path: Path) -> None:
    # Pages of zeros share one page, which comes first.
    address = max(range(0x6000000, 0x7F00000, PAGE), key=lambda at: _data_of(whole, at))
    offset, size = _data_of(whole, address)
    path = tmp_path / "core"
    for cut in (offset, offset + 1, offset + size - 1):
        path.write_bytes(whole[:cut])
        kernel = open_kernel(Request(core=str(path), types="none"))
        with pytest.raises(NotInDump):
            kernel.read_physical(address, PAGE)
        assert len(kernel.read_physical(0x2000000, PAGE)) == PAGE
    path.write_bytes(whole[: offset + size])
    kernel = open_kernel(Request(core=str(path), types="none"))
    assert len(kernel.read_physical(address, PAGE)) == PAGE


@pytest.mark.parametrize("looked_at", [None, 1], ids=["found when it is opened", "found when it is read"])
def test_a_page_that_reaches_behind_the_end(whole: bytes, tmp_path: Path, looked_at: Optional[int]) -> None:
    """Only that page is lost. If opening did not detect it in a large table, reading it kills the process."""
    data = bytearray(whole)
    address = 0x2000000
    struct.pack_into("<qII", data, _descriptor_of(bytes(data), address), len(data) - 20, PAGE, 0)
    path = tmp_path / "core"
    path.write_bytes(data)
    script = [
        "import sys; from kvintro import cli; from kvintro.source import kdump",
        "" if looked_at is None else f"kdump._LAST_DESCRIPTORS = {looked_at}",
        f"sys.exit(cli.main(['-c', {str(path)!r}, 'shell', '-e', 'prog.read({address}, 16, True)']))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=False
    )
    if looked_at is None:
        assert (done.returncode, done.stdout) == (1, "")
        assert "FaultError: cut off with the end of the dump" in done.stderr
    else:
        assert done.returncode == 3
        assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("what", ["registers", "page size"])
def test_notes_that_libkdumpfile_rejects(whole: bytes, tmp_path: Path, what: str) -> None:
    """It uses freed memory then, so this process must not open the file."""
    data = bytearray(whole)
    if what == "registers":
        struct.pack_into("<I", data, data.index(b"CORE\0") - 8, 303)  # the note's size
    else:
        at = data.index(b"PAGESIZE=4096\n")
        data[at + 9 : at + 13] = b"4097"
    path, log = tmp_path / "core", tmp_path / "log"
    path.write_bytes(data)

    def profile(frame: object, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ == "set_core_dump":
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")

    def opened_in() -> Set[int]:
        """The processes in which the file was opened."""
        log.write_text("")
        sys.setprofile(profile)
        try:
            open_kernel(Request(core=str(path)))
        finally:
            sys.setprofile(None)
            processes.update(map(int, log.read_text().split()))
        return processes

    processes: Set[int] = set()
    with pytest.raises(NotADump, match="cannot be read as kdump: Cannot process"):
        opened_in()
    assert processes and os.getpid() not in processes
    path.write_bytes(whole)
    assert os.getpid() in opened_in()


def test_a_kdump_is_not_opened_without_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", none)
    with pytest.raises(SourceError, match="no process can be started: Resource temporarily unavailable"):
        open_kernel(Request(core=str(SAMPLE)))


def records_of_makedumpfile(data: bytes) -> bytes:
    """A kdump flattened like makedumpfile's: only the structures in the header blocks have records, and
    descriptors come between the pages."""
    _, block, sub_blocks, bitmap_blocks = struct.unpack_from("<IiiI", data, 424)
    table = (1 + sub_blocks + bitmap_blocks) * block
    bitmaps = table - bitmap_blocks * block
    pages = min(struct.unpack_from("<q", data, at)[0] for at in range(table, table + 24 * 100, 24))
    records = [(0, 464), (block, 104), (block + 104, bitmaps - block - 104), (bitmaps, table - bitmaps)]
    step, share = 60000, -(-(pages - table) * 60000 // (len(data) - pages)) // 24 * 24 + 24
    for number, at in enumerate(range(pages, len(data), step)):
        low = table + number * share
        records += [(low, max(0, min(share, pages - low))), (at, min(step, len(data) - at))]
    head = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1) + bytes(4096 - 32)
    parts = [struct.pack(">qq", at, size) + data[at : at + size] for at, size in records if size > 0]
    return head + b"".join(parts) + b"\xff" * 16


@pytest.mark.parametrize("percent", [80, 92, 97, 99.9, 100])
def test_a_flattened_one_that_is_cut_off(whole: bytes, tmp_path: Path, percent: float) -> None:
    """The remaining pages equal those of the whole file, and no lost page reads as zeros."""
    path = tmp_path / "core"
    data = records_of_makedumpfile(whole)
    path.write_bytes(data[: int(len(data) * percent / 100)])
    expected = open_kernel(Request(core=str(SAMPLE), types="none"))
    try:
        kernel = open_kernel(Request(core=str(path), types="none"))
    except NotADump as error:
        assert percent < 99 and "truncated" in error.what + error.remedy
        return
    assert (kernel.source.complete, kernel.source.format) == (percent == 100, "flattened kdump")
    seen = 0
    for address in range(0, 0x8000000, 31 * PAGE):
        try:
            found = kernel.read_physical(address, PAGE)
        except NotInDump:
            continue
        seen += 1
        assert found == expected.read_physical(address, PAGE)
    assert seen > 300
