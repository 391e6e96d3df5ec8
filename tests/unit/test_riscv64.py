# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: page tables made by hand, with ranges of equal entries, and lines of VMCOREINFO.

The expected addresses follow the Privileged Architecture's chapter on Svnapot: in a range of 64 KB the lowest
four bits of the page frame number come from the address, and the entry has 1000 in their place.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Dict

import numpy
import pytest

from kvintro.arch.riscv64 import ARCHITECTURE
from kvintro.arch.riscv64.entries import of_any
from kvintro.arch.riscv64.form import LEVELS, RiscvForm
from kvintro.errors import NotInDump
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_USER,
    EFFECTIVE_USER_EXEC,
    MAPPED,
    Bulk,
    FrameTree,
    Tree,
    walk,
)
from kvintro.paging.search import find_frames
from kvintro.source.content import FileContent
from kvintro.source.note import parse

ROOT = 0x8000_0000
#: V, R, W, U, A and D: a page of user mode.
USER_PAGE = 0xD7
NAPOT = 1 << 63


class Tables:
    """Physical memory with page tables for one address and those after it."""

    def __init__(self, form: RiscvForm, entries: Dict[int, int]) -> None:
        self.pages: Dict[int, bytearray] = {}
        for level in range(form.levels, 1, -1):
            table = ROOT + 0x1000 * (form.levels - level)
            self.pages[table] = bytearray(4096)
            struct.pack_into("<Q", self.pages[table], 0, (table + 0x1000 >> 12) << 10 | 1)
        last = self.pages[ROOT + 0x1000 * (form.levels - 1)] = bytearray(4096)
        for index, entry in entries.items():
            struct.pack_into("<Q", last, 8 * index, entry)

    def read(self, address: int, size: int) -> bytes:
        page, at = address & -4096, address & 4095
        if page not in self.pages or at + size > 4096:
            raise NotInDump(address, size, physical=True)
        return bytes(self.pages[page][at : at + size])


@pytest.mark.parametrize("bits", LEVELS)
def test_a_range_of_equal_entries(bits: int) -> None:
    form = RiscvForm.of(bits)
    # Page frames 0x83c10 to 0x83c1f at the addresses 0x20000 to 0x2ffff.
    napot = NAPOT | (0x83C10 | 8) << 10 | USER_PAGE
    entries = {32 + i: napot for i in range(16)}
    entries[48] = 0x91234 << 10 | USER_PAGE
    memory = Tables(form, entries)
    expected = {0x20000 + i * 0x1000 + 0x123: (0x83C10 + i << 12) + 0x123 for i in range(16)}
    expected[0x30FFF] = 0x91234FFF
    addresses = numpy.array(list(expected), numpy.uint64)
    assert Bulk(memory.read, form, ROOT).translate(addresses).physical.tolist() == list(expected.values())
    for address, physical in expected.items():
        found = walk(memory.read, form, ROOT, address)
        assert (found.state, found.physical, found.page_size) == ("mapped", physical, 4096)
        tree = FrameTree(memory.read, form, ROOT, physical & -4096)
        shown = [start for start, _, key in tree.ranges(0, 0xFFFFF) if key & MAPPED]
        assert shown == [address & -4096]
    frames = numpy.array([0x83C1A, 0x91234], numpy.uint64)
    places = find_frames(memory.read, form, ROOT, frames, table_limit=64, place_limit=64).places
    assert set(places) == {(0x2A000, 0x83C1A), (0x30000, 0x91234)}
    entry = of_any("pte").decode(napot, 1)
    assert (entry.kind, entry.contiguous, entry.physical) == ("page", 64 << 10, 0x83C10000)


def test_kernel_mode_does_not_execute_pages_of_user_mode() -> None:
    form = RiscvForm.of(39)
    memory = Tables(form, {0: 0x80000 << 10 | 0x5B, 1: 0x80000 << 10 | 0x4B})
    keys = [key for _, _, key in Tree(memory.read, form, ROOT).ranges(0, 0x1FFF)]
    assert keys[0] & EFFECTIVE_USER and keys[0] & EFFECTIVE_USER_EXEC and not keys[0] & EFFECTIVE_EXEC
    assert keys[1] & EFFECTIVE_EXEC and not keys[1] & (EFFECTIVE_USER | EFFECTIVE_USER_EXEC)


def test_write_without_read_is_reserved() -> None:
    form = RiscvForm.of(48)
    assert not form.is_leaf(0x80000 << 10 | 0x5, 1)
    assert of_any("pte").decode(0x80000 << 10 | 0x5, 1).kind == "reserved"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("NUMBER(VA_BITS)=40", "VA_BITS"),
        ("NUMBER(va_kernel_pa_offset)=x", "va_kernel_pa_offset"),
        ("NUMBER(MODULES_END)=0x1000", "MODULES_END"),
        ("SYMBOL(swapper_pg_dir)=ffff800000000000", "swapper_pg_dir"),
        ("SYMBOL(_stext)=ffffffff82000000", "does not follow"),
    ],
)
def test_impossible_lines(line: str, told: str) -> None:
    text = ARCHITECTURE.minimal_vmcoreinfo(4096).decode() + "SYMBOL(_stext)=ffffffff80002000\n"
    assert ARCHITECTURE.address_space(parse(text)).root == 0x81200000
    with pytest.raises(ValueError, match=told):
        ARCHITECTURE.address_space(parse(f"{text}{line}\n"))


def test_kcore_with_a_negative_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size that stat() printed for /proc/kcore of 6.12 with sv39: 18446744000707698688."""
    path = tmp_path / "kcore"
    path.write_bytes(bytes(range(100)))
    fields = list(os.stat(path))
    fields[6] = 18446744000707698688 - (1 << 64)
    with path.open("rb") as file:
        monkeypatch.setattr(os, "fstat", lambda descriptor: os.stat_result((*fields, *[0] * 8)))
        content = FileContent(file)
        assert content.at(64, 8) == bytes(range(64, 72))
        assert content.at(96, 8) == bytes(range(96, 100))
        assert content.real == content.size > 1 << 62
