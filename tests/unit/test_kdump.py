# SPDX-License-Identifier: LGPL-2.1-or-later
"""Headers of kdump files made by the test: what is in them, and headers that lie."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Optional, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.source.kdump import FLATTENED, Kdump, examine_kdump
from tests.memory_files import flattened

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
    head = b"KDUMP   ".ljust(424, b"\0") + struct.pack("<IiiII", status, BLOCK, 1, 2, 16)
    sub = struct.pack("<QiiQQ", 0, 1, int(split is not None), *(split or (0, 0)))
    maps = b"".join(bitmap.ljust(BLOCK, b"\0") for bitmap in (exist, dumped))
    count = sum(bin(byte).count("1") for byte in dumped)
    first = 4 * BLOCK + 24 * count
    descriptors = b"".join(struct.pack("<qIIQ", first + 8 * i, 8, 0, 0) for i in range(count))
    data = head.ljust(BLOCK, b"\0") + sub.ljust(BLOCK, b"\0") + maps + descriptors + b"contents" * count
    return data[: len(data) - cut]


def examined(tmp_path: Path, data: bytes) -> Kdump:
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        return examine_kdump(file, len(data))


@pytest.mark.parametrize("flat", [False, True])
def test_what_headers_say(tmp_path: Path, flat: bool) -> None:
    def shape(data: bytes) -> bytes:
        return flattened(data) if flat else data

    found = examined(tmp_path, shape(kdump()))
    assert (found.complete, found.part, found.frames, found.block_size) == (True, None, 16, BLOCK)
    assert found.left_out == (12 - 7) * BLOCK
    assert found.memory == 7 * BLOCK
    assert list(found.ranges()) == [(0, 16 * BLOCK)]
    assert not examined(tmp_path, shape(kdump(status=8))).complete
    assert list(examined(tmp_path, shape(kdump(dumped=b"\1\0\0\x80"))).ranges()) == [
        (0, 8 * BLOCK),
        (24 * BLOCK, 32 * BLOCK),
    ]


def test_a_part_has_the_pages_of_its_range_only(tmp_path: Path) -> None:
    """Its bitmaps are those of the whole: frames 0 to 11 exist, 0, 2, 4 to 8 were dumped."""
    found = examined(tmp_path, kdump(dumped=b"\xf5\x01", split=(3, 8)))
    assert found.part == (3, 8)
    assert (found.memory, found.left_out) == (4 * BLOCK, 1 * BLOCK)
    # Only the whole's last page is cut off here, and this part has the first two.
    first = examined(tmp_path, kdump(split=(0, 3), cut=8))
    assert (first.memory, first.left_out, first.complete) == (2 * BLOCK, 1 * BLOCK, True)
    nothing = examined(tmp_path, kdump(split=(16, 16)))
    assert (nothing.memory, nothing.left_out) == (0, 0)


def test_the_last_pages_are_zeros(tmp_path: Path) -> None:
    """makedumpfile has one page of zeros before all others, and every page of zeros is that one."""
    data = bytearray(kdump())
    first = 4 * BLOCK + 24 * 7
    struct.pack_into("<q", data, 4 * BLOCK + 24 * 6, first)
    assert examined(tmp_path, bytes(data)).complete
    assert not examined(tmp_path, bytes(data[:-16])).complete


@pytest.mark.parametrize("cut", [1, 8, 100, 5000, 12000, 16000])
def test_cut_off(tmp_path: Path, cut: int) -> None:
    assert not examined(tmp_path, kdump(cut=cut)).complete
    assert not examined(tmp_path, flattened(kdump())[:-cut]).complete


@pytest.mark.parametrize(
    "data",
    [
        b"",
        FLATTENED,
        FLATTENED.ljust(4096, b"\0"),
        FLATTENED.ljust(4096, b"\0") + struct.pack(">qq", 0, 1 << 62),
        FLATTENED.ljust(4096, b"\0") + struct.pack(">qq", 1 << 62, 10) + bytes(100),
        FLATTENED.ljust(4096, b"\0") + struct.pack(">qq", 0, -5) + bytes(5000),
        b"KDUMP   " + bytes(4088),
        b"KDUMP   ".ljust(424, b"\0") + struct.pack("<IiiI", 0, 1 << 30, 1 << 30, 1 << 31) + bytes(9000),
        b"KDUMP   ".ljust(424, b"\0") + struct.pack("<IiiI", 0, 4096, -1, 1 << 31) + bytes(9000),
        b"KDUMP   ".ljust(424, b"\0") + struct.pack("<IiiI", 0, 4096, 1, 32768) + bytes(9000),
        flattened(b"KDUMP   ".ljust(424, b"\0") + struct.pack("<IiiI", 0, 4096, 1, 32768) + bytes(9000)),
    ],
)
def test_headers_that_lie(tmp_path: Path, data: bytes) -> None:
    started = time.process_time()
    assert list(examined(tmp_path, data).ranges()) == []
    assert time.process_time() - started < 2


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.integers(0, 20000), st.binary(min_size=1, max_size=12))
def test_damage(tmp_path_factory: pytest.TempPathFactory, flat: bool, at: int, junk: bytes) -> None:
    """Whatever is overwritten, nothing is raised."""
    data = bytearray(flattened(kdump()) if flat else kdump())
    data[at % len(data) : at % len(data) + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    with path.open("rb") as file:
        found = examine_kdump(file, len(data))
    assert all(start < end for start, end in found.ranges())
