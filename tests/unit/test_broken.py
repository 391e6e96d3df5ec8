# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unusable page tables, recognised by their required content; and trees that contain such tables."""

from __future__ import annotations

import random
from typing import List, Tuple

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.arch.address_space import Window
from kvintro.arch.x86_64 import ALL, ARCHITECTURE
from kvintro.paging import MAPPED, UNREADABLE, Ranges, Tree
from kvintro.paging.broken import (
    CYCLE,
    EMPTY,
    MISSING,
    OVERWRITTEN,
    ZERO,
    Judged,
    find_broken,
)
from tests.synthetic import PAGE, Memory

MB = 1 << 20
BASES = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}


def direct_map(levels: int, large: bool = False) -> Tuple[Memory, Window]:
    """8 MB of RAM in a direct map, which also contains its tables."""
    memory = Memory(levels)
    base = BASES[levels]
    for at in range(0, 8 * MB, 2 * MB if large else PAGE):
        memory.map(base + at, at, 2 if large else 1)
    return memory, Window("direct map", base, base + 8 * MB - 1, base, "page_offset_base", 8 * MB)


def judged(memory: Memory, window: Window, limit: int = 100) -> Judged:
    geometry = ARCHITECTURE.form(memory.levels, (1 << 52) - 1)
    return find_broken(memory.read, geometry, memory.root, window, limit)


def table_at(memory: Memory, address: int, level: int) -> int:
    """Physical address of the table of a level that translates an address."""
    table = memory.root
    for at in range(memory.levels, level, -1):
        entry = int.from_bytes(memory.read(table + 8 * (address >> 12 + 9 * (at - 1) & 511), 8), "little")
        table = entry & 0xFFFFFFFFFF000
    return table


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("large", [False, True])
def test_sound_tables(levels: int, large: bool) -> None:
    found = judged(*direct_map(levels, large))
    assert found == Judged((), levels - 1 if large else levels - 1 + 4, 0)


@pytest.mark.parametrize("change", ["nothing", "split", "few", "most", "flags", "swapped"])
def test_a_whole_table_of_large_pages(change: str) -> None:
    memory, base = Memory(4), BASES[4]
    for at in range(512):
        memory.map(base + (at << 21), at << 21, 2)
    window = Window("direct map", base, base + (1 << 30) - 1, base, "page_offset_base", 1 << 30)
    table = table_at(memory, base, 2)
    if change == "split":
        memory.entry(table + 8 * 7, 0)
        for at in range(7 << 21, 8 << 21, PAGE):
            memory.map(base + at, at)
    elif change in ("few", "most"):
        for at in range(1, 200 if change == "few" else 400):
            memory.entry(table + 8 * at, 0xE3 | (at ^ 1) << 21)
    elif change == "flags":
        memory.entry(table + 8 * 300, 0xC3 | 300 << 21)
    elif change == "swapped":
        memory.entry(table + 8 * 511, 0xE3 | 5 << 21)
    found = judged(memory, window)
    assert [one.why for one in found.broken] == ([OVERWRITTEN] if change == "most" else [])
    assert found.looked == (4 if change == "split" else 3)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("how", [ZERO, MISSING, OVERWRITTEN, CYCLE])
def test_a_broken_table(levels: int, level: int, how: str) -> None:
    memory, window = direct_map(levels)
    table = table_at(memory, window.start, level)
    if how == MISSING:
        del memory.pages[table]
    elif how == ZERO:
        memory.write(table, bytes(PAGE))
    elif how == OVERWRITTEN:
        # Present entries of pages at other addresses, or of tables outside RAM.
        memory.write(table, b"".join((0x7777000000063).to_bytes(8, "little") for _ in range(512)))
    else:
        memory.write(table, b"".join((table | 0x63).to_bytes(8, "little") for _ in range(512)))
    found = judged(memory, window)
    if how == CYCLE and level == 1:
        how = OVERWRITTEN  # its pages have wrong addresses
    assert {broken.why for broken in found.broken} == {how}
    expected = level if how != CYCLE else level - 1
    assert {(broken.level, broken.table) for broken in found.broken} == {(expected, table)}
    assert found.broken[0].start == window.start
    assert found.broken[-1].end == (window.start + 2 * MB - 1 if level == 1 else window.end)


@pytest.mark.parametrize("levels", [4, 5])
def test_no_entry_at_all(levels: int) -> None:
    memory, window = direct_map(levels)
    memory.map(0xFFFFFFFF81000000, 0x1000000)
    memory.entry(memory.root + 8 * (window.start >> 12 + 9 * (levels - 1) & 511), 0)
    (broken,) = judged(memory, window).broken
    assert (broken.why, broken.table, broken.level) == (EMPTY, memory.root, levels)
    assert not broken.whole  # other entries of the root are the kernel's


def test_pages_that_were_taken_out_are_no_damage() -> None:
    """memfd_secret and KFENCE clear PRESENT and keep the other bits; RAM may have gaps."""
    memory, window = direct_map(4)
    for at in range(0, 2 * MB, PAGE):
        memory.map(window.start + at, ~at & 0xFFFFFFFFFF000, flags=0x62)
    for at in range(2 * MB, 4 * MB - PAGE, PAGE):
        memory.map(window.start + at, 0, flags=0)
    assert not judged(memory, window).broken


def test_where_only_the_tables_tell() -> None:
    """Only this is known about the memory map: it lies in RAM."""
    memory = Memory()
    start = 0xFFFFEA0000000000
    window = Window("memory map", start, start + 2 * MB - 1, memory_end=8 * MB)
    for at in range(0, 2 * MB, PAGE):
        memory.map(start + at, 0x345000)
    assert not judged(memory, window).broken
    for at in range(0, 2 * MB, PAGE):
        memory.map(start + at, 0x12345000)
    assert [broken.why for broken in judged(memory, window).broken] == [OVERWRITTEN]


def test_a_limit() -> None:
    memory, window = direct_map(4)
    assert judged(memory, window, 5) == Judged((), 5, 2)


@given(st.integers(0, 1 << 32), st.sampled_from([4, 5]), st.integers(1, 3))
def test_any_damage_ends(seed: int, levels: int, count: int) -> None:
    chosen = random.Random(seed)
    memory, window = direct_map(levels, large=True)
    tables = sorted(memory.pages)
    for _ in range(count):
        table = chosen.choice(tables)
        if chosen.random() < 0.5:
            memory.write(table, chosen.randbytes(PAGE))
        else:
            entry = chosen.choice(tables) | 0x67
            memory.write(table + 8 * chosen.randrange(512), entry.to_bytes(8, "little"))
    for broken in judged(memory, window).broken:
        assert window.start <= broken.start <= broken.end <= window.end


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("level", [2, 3, 4])
def test_trees_that_refer_to_themselves(levels: int, level: int) -> None:
    """Memory below such a table does not count as mapped."""
    memory, window = direct_map(levels)
    geometry = ARCHITECTURE.form(levels, (1 << 52) - 1)
    table = table_at(memory, window.start, level)
    memory.entry(table + 8 * 511, table | 0x63)
    tree = Tree(memory.read, geometry, memory.root)
    ranges = tree.ranges(geometry.guard_hole.end + 1, ALL)
    assert sum(high - low + 1 for low, high, _ in ranges.select(MAPPED)) == 8 * MB
    assert sum(high - low + 1 for low, high, _ in ranges.select(UNREADABLE)) == 1 << geometry.shift(level)
    assert tree.nonsense_tables == 1


def test_tables_known_to_be_damaged() -> None:
    memory, window = direct_map(4)
    geometry = ARCHITECTURE.form(4, (1 << 52) - 1)
    tables = [table_at(memory, window.start, 1)]
    tree = Tree(memory.read, geometry, memory.root, unusable=tables)
    ranges = tree.ranges(window.start, window.end)
    assert [(low, high) for low, high, _ in ranges.select(UNREADABLE)] == [
        (window.start, window.start + 2 * MB - 1)
    ]
    tree = Tree(memory.read, geometry, memory.root, memory_end=memory.root)
    assert not tree.ranges(window.start, window.end).select(MAPPED)


@given(
    st.lists(st.integers(1, 99), unique=True, max_size=8),
    st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted),
)
def test_replacing_a_part_of_ranges(cuts: List[int], part: List[int]) -> None:
    starts = [0, *sorted(cuts)]
    ranges = Ranges(numpy.array(starts, numpy.uint64), numpy.arange(len(starts), dtype=numpy.uint64), 99)
    before = [key for low, high, key in ranges for _ in range(low, high + 1)]
    after = [key for low, high, key in ranges.replaced(part[0], part[1], 77) for _ in range(low, high + 1)]
    assert after == [77 if part[0] <= at <= part[1] else key for at, key in enumerate(before)]
