# SPDX-License-Identifier: LGPL-2.1-or-later
"""Headers of kdump files made by the test, correct and false ones."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import List, Optional, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.errors import NotADump, WrongArchitecture
from kvintro.opening import open_kernel
from kvintro.source import Request
from kvintro.source.content import Content, FileContent
from kvintro.source.flattened import MAGIC, Flattened
from kvintro.source.formats import examine
from kvintro.source.kdump import Kdump, examine_kdump, worth_a_look
from tests.memory_files import flattened
from tests.timing import allowed

BLOCK = 4096


def kdump(
    exist: bytes = b"\xff\x0f",
    dumped: bytes = b"\xf5\x01",
    *,
    status: int = 0,
    split: Optional[Tuple[int, int]] = None,
    cut: int = 0,
) -> bytes:
    """A header, a sub-header, two bitmaps of a block each, descriptors and pages of 8 bytes."""
    head = b"KDUMP   \6".ljust(424, b"\0") + struct.pack("<IiiII", status, BLOCK, 1, 2, 16)
    frames = split or (0, 0)
    sub = struct.pack("<QiiQQ48xQQQ", 0, 1, int(split is not None), *frames, *frames, 16)
    maps = b"".join(bitmap.ljust(BLOCK, b"\0") for bitmap in (exist, dumped))
    count = sum(bin(byte).count("1") for byte in dumped)
    first = 4 * BLOCK + 24 * count
    descriptors = b"".join(struct.pack("<qIIQ", first + 8 * i, 8, 0, 0) for i in range(count))
    data = head.ljust(BLOCK, b"\0") + sub.ljust(BLOCK, b"\0") + maps + descriptors + b"contents" * count
    return data[: len(data) - cut]


def content_of(tmp_path: Path, data: bytes) -> Content:
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        content = FileContent(file)
    return Flattened(content) if data.startswith(MAGIC) else content


def examined(tmp_path: Path, data: bytes) -> Kdump:
    return examine_kdump(content_of(tmp_path, data))


def ranges(tmp_path: Path, data: bytes) -> List[Tuple[int, int]]:
    content = content_of(tmp_path, data)
    return list(worth_a_look(content, examine_kdump(content)))


@pytest.mark.parametrize("flat", [False, True])
def test_what_headers_say(tmp_path: Path, flat: bool) -> None:
    def shape(data: bytes) -> bytes:
        return flattened(data) if flat else data

    found = examined(tmp_path, shape(kdump()))
    assert (found.complete, found.part, found.frames) == (True, None, 16)
    assert found.left_out == (12 - 7) * BLOCK
    assert found.memory == 7 * BLOCK
    assert ranges(tmp_path, shape(kdump())) == [(0, BLOCK), (2 * BLOCK, 3 * BLOCK), (4 * BLOCK, 9 * BLOCK)]
    assert not examined(tmp_path, shape(kdump(status=8))).complete
    assert ranges(tmp_path, shape(kdump(dumped=b"\1\0\0\x80"))) == [(0, BLOCK), (31 * BLOCK, 32 * BLOCK)]


def test_a_part_has_the_pages_of_its_range_only(tmp_path: Path) -> None:
    """Its bitmaps are those of the whole dump: frames 0 to 11 exist, and 0, 2, 4 to 8 were dumped."""
    found = examined(tmp_path, kdump(dumped=b"\xf5\x01", split=(3, 8)))
    assert found.part == (3, 8)
    assert (found.memory, found.left_out) == (4 * BLOCK, 1 * BLOCK)
    # Only the last page of the whole dump is cut off here, and this part has the first two.
    first = examined(tmp_path, kdump(split=(0, 3), cut=8))
    assert (first.memory, first.left_out, first.complete) == (2 * BLOCK, 1 * BLOCK, True)
    nothing = examined(tmp_path, kdump(split=(16, 16)))
    assert (nothing.memory, nothing.left_out) == (0, 0)


@pytest.mark.parametrize("step", [1, 3, 1 << 20])
def test_pages_that_share_their_data_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The search looks at each content once, however many pages share it, and at no more than fits."""
    monkeypatch.setattr("kvintro.source.kdump._STEP", step)
    data = bytearray(kdump(dumped=b"\xf5\x01"))  # frames 0, 2, 4 to 8
    table, first = 4 * BLOCK, 4 * BLOCK + 24 * 7
    for rank, page in enumerate((0, 0, 1, 0, 1, 2, 0)):
        struct.pack_into("<q", data, table + 24 * rank, first + 8 * page)
    # The step is in bytes of the bitmaps, and in descriptors; content that is in two steps may come twice.
    found = {
        frame for start, end in ranges(tmp_path, bytes(data)) for frame in range(start // BLOCK, end // BLOCK)
    }
    assert {0, 4, 7} <= found
    if step > 16:
        assert found == {0, 4, 7}
    monkeypatch.setattr("kvintro.source.kdump._FEW_PAGES", 1)
    monkeypatch.setattr("kvintro.source.kdump._LEAST_PAGE", 1 << 40)
    assert ranges(tmp_path, bytes(data)) == [(0, BLOCK)]


def test_the_last_pages_are_zeros(tmp_path: Path) -> None:
    """makedumpfile writes one page of zeros before all others, and all pages of zeros share it."""
    data = bytearray(kdump())
    first = 4 * BLOCK + 24 * 7
    struct.pack_into("<q", data, 4 * BLOCK + 24 * 6, first)
    assert examined(tmp_path, bytes(data)).complete
    assert not examined(tmp_path, bytes(data[:-16])).complete


@pytest.mark.parametrize("cut", [1, 8, 100, 5000, 12000, 16000])
def test_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "dump"
    for data in (kdump(cut=cut), flattened(kdump())[:-cut]):
        path.write_bytes(data)
        with path.open("rb") as file:
            assert examine(file, "FILE").complete is False


def header(*fields: int, version: int = 6, sub_header: bytes = b"") -> bytes:
    """status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr; and a sub-header after them."""
    head = b"KDUMP   " + struct.pack("<I", version)
    return head.ljust(424, b"\0") + struct.pack("<IiiII", *fields).ljust(BLOCK - 424, b"\0") + sub_header


def sub_header(info: int = 0, notes: int = 0, erased: int = 0, frames: int = 16) -> bytes:
    return struct.pack("<Qii16xQQQQQQ16xQ", 0, 1, 0, 1 << 14, info, 1 << 14, notes, 1 << 14, erased, frames)


GB = 1 << 30
LIES = {
    "a page of 1 GB": header(0, GB, 1, 2, 16),
    "a page of 64 KB": header(0, 65536, 1, 2, 16),
    "a sub-header before the header": header(0, 4096, -1, 2, 16),
    "a sub-header of 4 GB": header(0, 4096, 1 << 20, 2, 16, sub_header=sub_header()),
    "bitmaps of 8 TB": header(0, 4096, 1, (1 << 31) - 1, 16, sub_header=sub_header()),
    "bitmaps of 16 TB": header(0, 4096, 1, (1 << 32) - 1, 16, sub_header=sub_header()),
    "bitmaps of 1 GB": header(0, 4096, 1, GB // 4096, 16, sub_header=sub_header()),
    "no bitmaps": header(0, 4096, 1, 0, 16, sub_header=sub_header()),
    "more frames than bits": header(0, 4096, 1, 2, 16, sub_header=sub_header(frames=1 << 40)),
    "VMCOREINFO of 48 GB": header(0, 4096, 1, 2, 16, sub_header=sub_header(info=48 * GB)),
    "notes of 48 GB": header(0, 4096, 1, 2, 16, sub_header=sub_header(notes=48 * GB)),
    "notes of 2^64": header(0, 4096, 0, 2, 16, sub_header=sub_header(notes=(1 << 64) - 1)),
    "eraseinfo of 48 GB": header(0, 4096, 1, 2, 16, sub_header=sub_header(erased=48 * GB)),
    # libkdumpfile would treat this as the header of a 32-bit machine, with other sizes.
    "a header of 32 bits": header(1, 4096, 1, 2, 16)[:416]
    + struct.pack("<I", 4096)
    + header(1, 4096, 1, 2, 16)[420:],
}


@pytest.mark.parametrize("flat", [False, True], ids=["plain", "flattened"])
@pytest.mark.parametrize("data", LIES.values(), ids=LIES)
@pytest.mark.parametrize("size", [0, 1 << 42], ids=["short", "sparse"])
def test_headers_that_lie(tmp_path: Path, data: bytes, size: int, flat: bool) -> None:
    """They are refused before anything is allocated, whatever size the file claims."""
    path = tmp_path / "file"
    path.write_bytes(flattened(data)[:-16] if flat else data)
    os.truncate(path, max(size, path.stat().st_size))
    with path.open("rb") as file:
        content = FileContent(file)
    started = time.process_time()
    with pytest.raises(NotADump):
        examine_kdump(Flattened(content) if flat else content)
    assert time.process_time() - started < allowed(2)


def test_a_bitmap_of_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libkdumpfile allocates memory for each run of pages."""
    monkeypatch.setattr("kvintro.source.kdump._FREE_RUNS", 100)
    examined(tmp_path, kdump(dumped=b"\x55" * 20))
    with pytest.raises(NotADump, match="too many gaps"):
        examined(tmp_path, kdump(dumped=b"\x55" * 40))
    examined(tmp_path, kdump(exist=b"\xff" * 40, dumped=b"\xff" * 40))


@pytest.mark.parametrize("data", [b"", MAGIC, MAGIC.ljust(4096, b"\0"), b"KDUMP   " + bytes(100)])
def test_nothing_but_a_beginning(tmp_path: Path, data: bytes) -> None:
    found = examined(tmp_path, data)
    assert (found.complete, found.memory, found.left_out) == (False, None, None)


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.integers(0, 20000), st.binary(min_size=1, max_size=12))
def test_damage(tmp_path_factory: pytest.TempPathFactory, flat: bool, at: int, junk: bytes) -> None:
    """Whatever is overwritten, only NotADump is raised."""
    data = bytearray(flattened(kdump()) if flat else kdump())
    data[at % len(data) : at % len(data) + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    with path.open("rb") as file:
        plain = FileContent(file)
    try:
        content: Content = Flattened(plain) if flat else plain
        found = examine_kdump(content)
    except NotADump:
        return
    assert all(start < end for start, end in worth_a_look(content, found))


def test_a_machine_that_qemu_does_not_know(tmp_path: Path) -> None:
    """As QEMU writes kdumps of arm64: machine "Unknown", blocks of 64 KB."""
    data = bytearray(64 << 10)
    data[:8] = b"KDUMP   "
    data[272:280] = b"Unknown\0"
    data[428:432] = (64 << 10).to_bytes(4, "little")
    path = tmp_path / "dump"
    path.write_bytes(data)
    with pytest.raises(WrongArchitecture) as caught:
        open_kernel(Request(core=str(path)))
    assert "QEMU" in caught.value.what
    assert "ELF" in caught.value.remedy
