# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of physical memory: their headers, missing parts and errors."""

from __future__ import annotations

import importlib
import os
import random
import struct
from pathlib import Path
from typing import Any, Callable, List

import drgn
import pytest

from kvintro.errors import NotADump, NotInDump, SourceError
from kvintro.source.content import FileContent
from kvintro.source.formats.avml import AvmlFile
from kvintro.source.formats.lime import open_lime
from kvintro.source.formats.raw import raw_layouts
from kvintro.source.physical import Extent, MemoryFile, PhysicalMemory, segment
from tests.memory_files import avml, framed, lime, snappy

GB = 1 << 30
LOW = bytes(range(256)) * 40
HIGH = random.Random(1).randbytes(150_000)
RANGES = [(0x1000, LOW), (0x100000, HIGH)]


def written(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return path.open("r+b")


def packed(ranges: Any = None) -> bytes:
    pack = snappy()
    if pack is None:
        pytest.skip("no snappy library (pip install cramjam)")
    return avml(RANGES if ranges is None else ranges, pack)


Opened = Callable[[bytes], PhysicalMemory]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Open content as the format of its magic number."""

    def open_it(data: bytes) -> PhysicalMemory:
        with written(tmp_path / "file", data) as file:
            if data.startswith(b"AVML"):
                return AvmlFile(FileContent(file), "FILE")
            return open_lime(FileContent(file), "FILE")

    return open_it


@pytest.mark.parametrize("make", [lambda: lime(RANGES), packed], ids=["lime", "avml"])
def test_ranges(opened: Opened, make: Callable[[], bytes]) -> None:
    memory = opened(make())
    assert memory.complete
    assert [(e.address, e.size) for e in memory.extents] == [(first, len(data)) for first, data in RANGES]
    for first, data in RANGES:
        assert memory.read(first, len(data)) == data
        assert memory.read(first + 70, 5) == data[70:75]
        assert memory.read(first + len(data) - 1, 1) == data[-1:]
        for address, size in ((first - 1, 2), (first + len(data) - 1, 2), (first + len(data), 1)):
            with pytest.raises(NotInDump):
                memory.read(address, size)
    content = {address: bytes(data) for address, data in memory.pieces()}
    assert b"".join(content[address] for address in sorted(content)) == LOW + HIGH
    with pytest.raises(drgn.FaultError):
        segment(memory)(0, 8, 0, True)


def test_ranges_side_by_side_are_read_as_one(opened: Opened) -> None:
    memory = opened(lime([(0x2000, HIGH[:4096]), (0x1000, LOW[:4096])]))
    assert memory.read(0x1F00, 0x200) == LOW[0xF00:0x1000] + HIGH[:0x100]


def test_avml_leaves_zeros_out(opened: Opened) -> None:
    block = 16 << 20
    memory = opened(packed([(0, LOW.ljust(block, b"\0") + bytes(block) + HIGH)]))
    assert [(e.address, e.size) for e in memory.extents] == [(0, block), (2 * block, len(HIGH))]
    assert memory.read(2 * block + 100_000, 50_000) == HIGH[100_000:]
    with pytest.raises(NotInDump):
        memory.read(block, 1)


@pytest.mark.parametrize("make", [lambda: lime(RANGES), packed], ids=["lime", "avml"])
def test_cut_off_anywhere(opened: Opened, make: Callable[[], bytes]) -> None:
    """Remaining data is read correctly, the rest is missing, and the completeness is known."""
    data = make()
    for end in [*range(8, 100, 7), *range(200, len(data), 9973), len(data) - 1]:
        memory = opened(data[:end])
        assert not memory.complete
        for first, content in RANGES:
            for at in range(0, len(content), 7919):
                try:
                    assert memory.read(first + at, 1) == content[at : at + 1]
                except NotInDump:
                    continue


def header(first: int, last: int, magic: bytes = b"EMiL", version: int = 1) -> bytes:
    return struct.pack("<4sIQQQ", magic, version, first, last, 0)


def chunk(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "little") + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (header(0x2000, 0x1000), "invalid header"),
        (header(0, 1 << 60), "invalid header"),
        (header(0, 9, version=2), "invalid header"),
        (header(0, 9) + bytes(10) + b"garbage" * 10, "invalid header at byte 42"),
        (lime([(0, LOW), (0x1000, LOW)]), "overlap"),
        (header(0, 9, b"AVML", 1), "invalid header"),
        (header(0, 9, b"AVML", 2) + chunk(0x33, bytes(20)), "invalid chunk at byte 32"),
        (header(0, 9, b"AVML", 2) + chunk(1, bytes(3)), "invalid chunk at byte 32"),
        (header(0, 9, b"AVML", 2) + chunk(1, bytes(100)), "invalid chunk at byte 32"),
        # A chunk that claims to unpack to 4 GB.
        (
            header(0, GB, b"AVML", 2) + chunk(0, bytes(4) + b"\xff\xff\xff\xff\x0f" + bytes(9)),
            "invalid chunk at byte 32",
        ),
        (header(0, 9, b"AVML", 2) + chunk(1, bytes(4) + b"0123456789") + bytes(8), "a wrong length"),
    ],
)
def test_what_makes_no_sense(opened: Opened, data: bytes, said: str) -> None:
    with pytest.raises(NotADump, match=said):
        opened(data)


def test_more_than_any_machine_has(opened: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files that are slow on purpose: ranges and chunks of one byte each."""
    for module in ("lime", "avml"):
        monkeypatch.setattr(f"kvintro.source.formats.{module}.FEW_RANGES", 10)
    with pytest.raises(NotADump, match="too many ranges"):
        opened(lime([(at, b"x") for at in range(11)]))
    with pytest.raises(NotADump, match="too many blocks"):
        opened(packed([(at, b"x") for at in range(11)]))
    monkeypatch.setattr("kvintro.source.formats.avml._FEW_CHUNKS", 10)
    frames = b"".join(chunk(1, bytes(5)) for _ in range(100))
    with pytest.raises(NotADump, match="more chunks"):
        opened(header(0, 99, b"AVML", 2) + frames + struct.pack("<Q", len(frames)))


def test_damaged_chunk_is_missing(opened: Opened) -> None:
    data = bytearray(packed([(0, LOW.ljust(1 << 17, b"\0"))]))
    at = data.index(b"sNaPpY") + 6 + 4 + 4 + 3
    data[at : at + 200] = b"\xff" * 200
    memory = opened(bytes(data))
    assert memory.read(1 << 16, 100) == bytes(100)
    with pytest.raises(NotInDump):
        memory.read(0, 100)


def test_skippable_chunks(opened: Opened) -> None:
    body = chunk(0xFE, bytes(100)) + framed(LOW, lambda data: data) + chunk(0x80, b"x")
    frames = body[: body.rindex(b"\x80")]
    data = header(0, len(LOW) - 1, b"AVML", 2) + frames + struct.pack("<Q", len(frames))
    assert opened(data).read(0, len(LOW)) == LOW


def test_no_snappy_library(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("kvintro.source.formats.avml.import_module", missing)
    with pytest.raises(SourceError, match="no snappy library") as raised:
        opened(header(0, 9, b"AVML", 2))
    assert "kvintro[avml]" in raised.value.remedy


def test_python_snappy_will_do(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("snappy")
    data = packed()
    imported = importlib.import_module

    def without(name: str) -> Any:
        if name == "cramjam":
            raise ImportError(name)
        return imported(name)

    monkeypatch.setattr("kvintro.source.formats.avml.import_module", without)
    assert opened(data).read(0x100000, len(HIGH)) == HIGH


def layouts(tmp_path: Path, size: int) -> List[List[Extent]]:
    with written(tmp_path / "raw", b"") as file:
        file.truncate(size)
        return [layout.extents for layout in raw_layouts(FileContent(file))]


def test_raw_layouts(tmp_path: Path) -> None:
    """Only memory larger than the RAM below 4 GB can have a gap there."""
    assert layouts(tmp_path, 2 * GB) == [[Extent(0, 2 * GB, 0)]]
    found = layouts(tmp_path, 8 * GB)
    assert found[0] == [Extent(0, 8 * GB, 0)]
    assert [Extent(0, 3 * GB, 0), Extent(4 * GB, 5 * GB, 3 * GB)] in found
    assert [Extent(0, 2 * GB, 0), Extent(4 * GB, 6 * GB, 2 * GB)] in found


def test_raw_across_the_gap(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with path.open("wb") as file:
        file.truncate(4 * GB)
        for offset, mark in ((0, b"low"), (3 * GB - 3, b"end"), (3 * GB, b"high"), (4 * GB - 4, b"last")):
            os.pwrite(file.fileno(), mark, offset)
    with path.open("rb") as opened_file:
        flat, split = raw_layouts(FileContent(opened_file))[:2]
    assert (flat.end, split.end) == (4 * GB, 5 * GB)
    assert split.read(3 * GB - 3, 3) == b"end"
    assert split.read(4 * GB, 4) == b"high" == flat.read(3 * GB, 4)
    assert split.read(5 * GB - 4, 4) == b"last"
    with pytest.raises(NotInDump):
        split.read(3 * GB - 1, 2)
    assert split.moved(flat, 3 * GB + 5) == 4 * GB + 5
    assert split.moved(flat, 17) == 17
    # The holes of the file cost nothing.
    assert sum(len(data) for _, data in flat.pieces()) < 64 << 20
    assert {address for address, _ in split.pieces()} >= {0, 4 * GB}


def test_pieces_begin_with_pages(tmp_path: Path) -> None:
    """A range that begins within a page is still read page by page."""
    with written(tmp_path / "file", b"#" * 100 + LOW) as file:
        memory = MemoryFile(FileContent(file), [Extent(0x1100, len(LOW), 100)])
    assert [address for address, _ in memory.pieces()] == [0x1100]
    assert memory.read(0x1100, 4) == LOW[:4]
