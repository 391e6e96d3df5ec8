# SPDX-License-Identifier: LGPL-2.1-or-later
"""Flattened files: in any order of their records, the content read equals the output of `makedumpfile -R`.

The reference is :func:`rearranged`, which seeks and writes each record, like makedumpfile.
"""

from __future__ import annotations

import os
import random
import struct
import time
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.cli import main
from kvintro.errors import NotADump, NotInDump
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.source import Request, flattened
from kvintro.source.content import Content, FileContent
from kvintro.source.flattened import MAGIC, Flattened
from tests.synthetic import PAGE, START_KERNEL_MAP, Memory, elf_core, vmcoreinfo
from tests.timing import allowed

Record = Tuple[int, bytes]
END = b"\xff" * 16


def packed(records: Sequence[Record], end: bytes = END) -> bytes:
    head = MAGIC + struct.pack(">qq", 1, 1) + bytes(4096 - 32)
    return head + b"".join(struct.pack(">qq", at, len(data)) + data for at, data in records) + end


def rearranged(records: Sequence[Record]) -> bytes:
    image = bytearray()
    for at, data in records:
        image += bytes(max(0, at + len(data) - len(image)))
        image[at : at + len(data)] = data
    return bytes(image)


def content_of(path: Path, data: bytes, size: int = 0) -> Flattened:
    path.write_bytes(data)
    os.truncate(path, max(size, len(data)))
    with path.open("rb") as file:
        return Flattened(FileContent(file))


RECORDS = st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=60)), max_size=30)


@settings(max_examples=300)
@given(RECORDS, st.integers(0, 320), st.integers(0, 320))
def test_any_order_and_any_overlap(
    tmp_path_factory: pytest.TempPathFactory, records: List[Record], at: int, size: int
) -> None:
    image = rearranged(records)
    content = content_of(tmp_path_factory.getbasetemp() / "flat", packed(records))
    assert (content.complete, content.size) == (True, len(image))
    assert content.at(0, len(image) + 10) == image
    assert content.at(at, size) == image[at : at + size]
    assert content.has_all(at, size) == (at + size <= len(image))
    # Reported holes are zeros.
    seen = bytearray(len(image))
    for start, end in content.stretches(0, len(image)):
        seen[start:end] = image[start:end]
    assert seen == image
    with content.rearranged() as file:
        assert file.read() == image


@settings(max_examples=200)
@given(RECORDS, st.integers(0, 2500))
def test_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, records: List[Record], cut: int) -> None:
    """Data in the remaining records is read; other data is lost, and does not read as zeros."""
    data = packed(records)
    data = data[: max(4096, len(data) - cut)]
    content = content_of(tmp_path_factory.getbasetemp() / "cut", data)
    if cut:
        assert not content.complete
    left: List[Record] = []
    at = 4096
    while at + 16 < len(data) and data[at : at + 16] != END:
        place, size = struct.unpack_from(">qq", data, at)
        left.append((place, data[at + 16 : at + 16 + size]))
        at += 16 + size
    image, there = rearranged(left), rearranged([(place, b"\1" * len(part)) for place, part in left])
    for position in range(len(image)):
        expected = image[position : position + 1] if there[position] or content.complete else b""
        assert content.at(position, 1) == expected
        assert content.has_all(position, 1) == bool(expected)


def memory_of_a_kernel() -> Memory:
    memory = Memory()
    memory.map(0xFFFFFFFF81000000, 0x1000000, 2)
    memory.map(0xFFFF888000000000, 0, 3)
    memory.map(0xFFFFC90000001000, 0x300000)
    memory.write(0x300000, bytes(range(256)) * 16)
    memory.write(0x400000, b"the last page")
    return memory


def elf() -> bytes:
    """A kernel's ELF core with a segment for each page; all but one have an address other than 0."""
    memory = memory_of_a_kernel()
    segments = [(START_KERNEL_MAP + at, at, bytes(data)) for at, data in sorted(memory.pages.items())]
    return elf_core(segments, [("VMCOREINFO", 0, vmcoreinfo().encode())])


def cut_into(image: bytes, chosen: random.Random, way: str) -> List[Record]:
    """Records of a file: as makedumpfile -E has them, with the program headers first and the ELF header last;
    in any order; or with junk that is overwritten later."""
    if way == "headers last":
        pages = [(at, image[at : at + PAGE]) for at in range(PAGE, len(image), PAGE)]
        return [(64, image[64:PAGE]), *pages, (0, image[:64])]
    borders = sorted({0, len(image), *(chosen.randrange(len(image)) for _ in range(40))})
    records = [(a, image[a:b]) for a, b in zip(borders, borders[1:])]
    chosen.shuffle(records)
    if way == "overwritten":
        junk = [(at, chosen.randbytes(len(data))) for at, data in chosen.sample(records, 20)]
        records = [*junk, (0, bytes(5000)), *records]
    return records


def shown(path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> Tuple[int, str, str]:
    code = main(["-c", str(path), *command.split()])
    out, err = capsys.readouterr()
    return code, out.replace(str(path), "FILE"), err.replace(str(path), "FILE")


@pytest.mark.parametrize("way", ["headers last", "any order", "overwritten"])
def test_elf(tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str) -> None:
    """Every command gives the same output as for the rearranged file."""
    image = elf()
    plain, flat = tmp_path / "plain", tmp_path / "flat"
    plain.write_bytes(image)
    for number in range(3):
        flat.write_bytes(packed(cut_into(image, random.Random(number), way)))
        for command in (
            "layout",
            "info --json",
            "ptdump",
            "translate ffffc90000001000 --walk",
        ):
            expected, found = shown(plain, command, capsys), shown(flat, command, capsys)
            size, flat_size = (f'"value": {path.stat().st_size},' for path in (plain, flat))
            said = found[1].replace("flattened ELF", "ELF").replace(flat_size, size)
            if command == "layout":
                assert "TRUNCATED" not in said
                assert " complete " in said
                # Only the size of the file differs.
                assert said.splitlines()[2:] == expected[1].splitlines()[2:]
            else:
                assert (found[0], said) == expected[:2]
            assert found[2] == expected[2]


def test_elf_without_what_no_record_has(tmp_path: Path) -> None:
    """A page of zeros without a record is zeros in a complete file, and lost in an incomplete one."""
    image = bytearray(elf())
    memory = memory_of_a_kernel()
    first = len(image) - PAGE * len(memory.pages)
    at = first + PAGE * sorted(memory.pages).index(0x300000)
    image[at : at + PAGE] = bytes(PAGE)
    records = [(0, bytes(image[:at])), (at + PAGE, bytes(image[at + PAGE :]))]
    path = tmp_path / "flat"
    path.write_bytes(packed(records))
    kernel = open_kernel(Request(core=str(path)))
    assert (kernel.source.complete, kernel.source.format) == (True, "flattened ELF")
    assert kernel.read_physical(0x300000, PAGE) == bytes(PAGE)
    path.write_bytes(packed(records, end=b""))
    kernel = open_kernel(Request(core=str(path)))
    assert kernel.source.complete is False
    with pytest.raises(NotInDump):
        kernel.read_physical(0x300000, PAGE)


def test_elf_cut_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is opened without showing missing data, or refused with one line and a hint."""
    image = elf()
    data = packed([(0, image[:4096]), *((at, image[at : at + PAGE]) for at in range(4096, len(image), PAGE))])
    path = tmp_path / "flat"
    opened = 0
    whole = memory_of_a_kernel()
    for cut in range(4096, len(data), 611):
        path.write_bytes(data[:cut])
        code, out, err = shown(path, "layout", capsys)
        assert "internal error" not in err
        if code == 3:
            assert len(err.splitlines()) == 2
            continue
        opened += 1
        assert "TRUNCATED" in out
        kernel: Kernel = open_kernel(Request(core=str(path)))
        for address, page in whole.pages.items():
            try:
                assert kernel.read_physical(address, PAGE) == page
            except NotInDump:
                continue
    assert opened > 10


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ([], "truncated before its header"),
        ([(0, b"\x1f\x8b\x08" + bytes(100))], "not a kernel dump"),
        ([(0, packed([(0, b"x")]))], "not a kernel dump"),
        ([(64, b"x" * 100)], "not a kernel dump"),
    ],
)
def test_something_else_flattened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inner: List[Record], said: str
) -> None:
    path = tmp_path / "flat"
    path.write_bytes(packed(inner, end=END if inner else b""))
    code, _, err = shown(path, "layout", capsys)
    assert code == 3
    assert said in err
    assert len(err.splitlines()) == 2


def records_of(count: int, size: int = 1) -> bytes:
    return b"".join(struct.pack(">qq", at * 3 * size, size) + b"x" * size for at in range(count))


@pytest.mark.parametrize(
    ("data", "size", "refused"),
    [
        (records_of(1 << 18), 0, True),
        (struct.pack(">qq", 0, 0) * (1 << 18), 0, False),
        (b"", 1 << 43, False),
        (struct.pack(">qq", 4096, 1 << 42), 1 << 43, False),
        (struct.pack(">qq", (1 << 62) - 1, 1) + b"x", 0, False),
        (struct.pack(">qq", 1 << 62, 1 << 62), 1 << 43, False),
        (struct.pack(">qq", -2, 5), 0, False),
        (struct.pack(">qq", 5, -1), 0, False),
    ],
    ids=["tiny", "empty", "a hole", "a record of a hole", "far away", "beyond", "negative", "negative size"],
)
def test_records_that_lie(tmp_path: Path, data: bytes, size: int, refused: bool) -> None:
    """Their number is in proportion to the file's content, and their sizes are not used for allocations."""
    started = time.process_time()
    try:
        content: Optional[Content] = content_of(tmp_path / "flat", packed([(0, b"head")], end=data), size)
    except NotADump as error:
        assert refused
        assert "too many records" in error.what
    else:
        assert content is not None and not refused
        assert content.at(0, 4) == b"head"
        assert len(content.at(2, 1 << 60)) <= 64 << 20
    assert time.process_time() - started < allowed(3)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of(tmp_path / "flat", packed([(0, b"x" * 5000)]))
    monkeypatch.setattr(flattened, "room_in", lambda directory: 4999)
    with pytest.raises(NotADump, match=r"needs 4\.88 KB") as raised:
        content.rearranged()
    assert "makedumpfile -R" in raised.value.remedy
    monkeypatch.undo()

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flattened, "copy_stretches", full)
    with pytest.raises(NotADump, match="No space left"):
        content.rearranged()
