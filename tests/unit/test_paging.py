# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks, trees and bulk translation over page tables made by hand, sane and hostile.

The reference is a hand-written table, if there is one. To test that the three walkers agree, the reference is
the step-by-step walk, which is short enough to be checked by reading.
"""

from __future__ import annotations

import struct
import time
from typing import Dict, Tuple

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.arch.x86_64 import ALL, ARCHITECTURE, PRESENT, PSE, RW, USER
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_READ,
    EFFECTIVE_USER,
    EFFECTIVE_USER_EXEC,
    EFFECTIVE_WRITE,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    OVER_LIMIT,
    UNREADABLE,
    Bulk,
    FrameTree,
    Tree,
    walk,
)
from kvintro.paging.bulk import STATES
from tests.synthetic import Memory
from tests.timing import allowed

MASK = (1 << 52) - 1
GEOMETRY = {levels: ARCHITECTURE.form(levels, MASK) for levels in (4, 5)}
NX = 1 << 63
KERNEL = 0xFFFF_8880_0000_0000


@pytest.mark.parametrize(
    ("levels", "virtual", "level", "physical"),
    [
        (4, 0x1000, 1, 0x5000),
        (4, 0x7FFF_FFFF_F000, 1, 0xABC_D000),
        (4, 0xFFFF_8000_0000_0000, 2, 0x4000_0000),
        (4, 0xFFFF_FFFF_C000_0000, 3, 0x80_0000_0000),
        (5, 0xFF_FFFF_FFFF_F000, 1, 0x5000),
        (5, 0xFF11_0000_0020_0000, 2, 0xF_FFFF_FFE0_0000),
        (5, 0xFFFF_FFFF_FFFF_F000, 1, 0x9000),
    ],
)
def test_walk_of_a_page(levels: int, virtual: int, level: int, physical: int) -> None:
    memory = Memory(levels)
    memory.map(virtual, physical, level)
    geometry = GEOMETRY[levels]
    size = {1: 1 << 12, 2: 1 << 21, 3: 1 << 30}[level]
    for inside in (0, 0x123, size - 1):
        found = walk(memory.read, geometry, memory.root, virtual + inside)
        assert (found.state, found.physical, found.page_size) == ("mapped", physical + inside, size)
    assert [step.level for step in found.steps] == list(range(levels, level - 1, -1))
    assert walk(memory.read, geometry, memory.root, (virtual - 1) & ALL).state in (
        "unmapped",
        "non-canonical",
    )


def test_non_canonical_addresses_are_not_walked() -> None:
    def read(address: int, size: int) -> bytes:
        raise AssertionError("no table may be read")

    assert walk(read, GEOMETRY[4], 0x1000, 0x8000_0000_0000).state == "non-canonical"
    # With five levels, the same address belongs to user space.
    memory = Memory(5)
    memory.map(0x8000_0000_0000, 0x5000)
    assert walk(memory.read, GEOMETRY[5], memory.root, 0x8000_0000_0000).physical == 0x5000


def test_bits_that_encryption_took_are_no_address() -> None:
    memory = Memory()
    memory.map(KERNEL, 0x5000 | 1 << 47)
    geometry = ARCHITECTURE.form(4, MASK & ~(1 << 47))
    assert walk(memory.read, geometry, memory.root, KERNEL).physical == 0x5000
    assert walk(memory.read, GEOMETRY[4], memory.root, KERNEL).physical == 0x5000 | 1 << 47
    array = numpy.array([KERNEL], numpy.uint64)
    assert Bulk(memory.read, geometry, memory.root).translate(array).physical.tolist() == [0x5000]


def test_pat_of_a_large_page_is_no_address() -> None:
    memory = Memory()
    memory.map(KERNEL, 0x20_0000 | 1 << 12, 2)
    found = walk(memory.read, GEOMETRY[4], memory.root, KERNEL + 0x1234)
    assert found.physical == 0x20_1234


@pytest.mark.parametrize(("level", "bit"), [(2, 13), (2, 20), (3, 13), (3, 29)])
def test_the_processor_refuses_reserved_bits_of_large_pages(level: int, bit: int) -> None:
    memory = Memory()
    memory.map(KERNEL, 1 << bit, level)
    assert walk(memory.read, GEOMETRY[4], memory.root, KERNEL).state == "unmapped"
    assert not mapped(Tree(memory.read, GEOMETRY[4], memory.root), KERNEL)
    result = Bulk(memory.read, GEOMETRY[4], memory.root).translate(numpy.array([KERNEL], numpy.uint64))
    assert STATES[int(result.states[0])] == "unmapped"


@pytest.mark.parametrize("levels", [4, 5])
def test_the_processor_refuses_pages_of_the_upper_levels(levels: int) -> None:
    memory = Memory(levels)
    for level in range(4, levels + 1):
        memory.pages[memory.root] = bytearray(4096)
        virtual = KERNEL if levels == 4 else 0xFF11_0000_0000_0000
        memory.map(virtual, 0x5000)
        at = memory.root
        for above in range(levels, level, -1):
            entry = at + 8 * GEOMETRY[levels].index(virtual, above)
            at = struct.unpack("<Q", memory.read(entry, 8))[0] & 0xFFFFFFFFFF000
        entry = at + 8 * GEOMETRY[levels].index(virtual, level)
        memory.entry(entry, struct.unpack("<Q", memory.read(entry, 8))[0] | PSE)
        assert walk(memory.read, GEOMETRY[levels], memory.root, virtual).state == "unmapped"
        assert not mapped(Tree(memory.read, GEOMETRY[levels], memory.root), virtual)


def test_a_missing_table_is_not_an_empty_one() -> None:
    memory = Memory()
    memory.map(KERNEL, 0x5000)
    memory.map(KERNEL + (1 << 30), 0x6000)
    steps = walk(memory.read, GEOMETRY[4], memory.root, KERNEL).steps
    del memory.pages[steps[-1].entry_address & ~0xFFF]
    found = walk(memory.read, GEOMETRY[4], memory.root, KERNEL)
    assert (found.state, found.physical, found.steps[-1].value) == ("not-in-dump", None, None)
    ranges = Tree(memory.read, GEOMETRY[4], memory.root).ranges(KERNEL, ALL)
    assert next(iter(ranges))[2] & UNREADABLE
    array = numpy.array([KERNEL, KERNEL + (1 << 30), KERNEL + (1 << 21)], numpy.uint64)
    states = Bulk(memory.read, GEOMETRY[4], memory.root).translate(array).states
    assert [STATES[s] for s in states.tolist()] == ["not-in-dump", "mapped", "unmapped"]


def mapped(tree: Tree, address: int) -> bool:
    """Whether a tree says that an address is mapped."""
    (found,) = tree.ranges(address, address)
    return bool(found[2] & MAPPED)


def test_rights_are_those_of_all_levels_together() -> None:
    memory = Memory()
    memory.map(KERNEL, 0x5000, flags=PRESENT | RW | USER)
    entries = walk(memory.read, GEOMETRY[4], memory.root, KERNEL).steps
    # Each level removes a right: the pgd USER, the pud RW, the pmd execution.
    for step, value in zip(entries, (RW, USER, RW | USER | NX)):
        assert step.value is not None
        memory.entry(step.entry_address, step.value & ~(RW | USER) | value)
    (found,) = Tree(memory.read, GEOMETRY[4], memory.root).ranges(KERNEL, KERNEL)
    assert found[2] & (RW | USER) == RW | USER
    assert not found[2] & (EFFECTIVE_WRITE | EFFECTIVE_USER | EFFECTIVE_EXEC | EFFECTIVE_USER_EXEC)
    assert found[2] & EFFECTIVE_READ


@st.composite
def page_tables(draw: st.DrawFn) -> Tuple[int, Dict[int, bytearray], int]:
    """(levels, tables by address, root): a few tables that point to each other or nowhere, at random."""
    levels = draw(st.sampled_from([4, 5]))
    addresses = [0x1000 * (i + 1) for i in range(draw(st.integers(1, 6)))]
    pages = {}
    entry = st.builds(
        lambda target, flags, high: target | flags | high,
        st.one_of(st.sampled_from([*addresses, 0x7000, 0x4000_0000, 0x20_0000]), st.integers(0, MASK)),
        st.integers(0, 0xFFF).map(lambda v: v | PRESENT) | st.integers(0, 0xFFF),
        st.sampled_from([0, NX, 1 << 58, 0xF << 59]),
    )
    for address in addresses:
        table = bytearray(4096)
        slots = draw(st.dictionaries(st.sampled_from([0, 1, 2, 255, 256, 272, 510, 511]), entry, max_size=8))
        for index, value in slots.items():
            struct.pack_into("<Q", table, 8 * index, value & ALL)
        pages[address] = table
    return levels, pages, addresses[0]


INDEX = st.sampled_from([0, 1, 2, 3, 255, 256, 272, 510, 511])


@settings(max_examples=150, deadline=None)
@given(
    page_tables(), st.lists(st.tuples(INDEX, INDEX, INDEX, INDEX, INDEX, st.integers(0, 0xFFF)), max_size=12)
)
def test_three_walkers_agree_on_any_tables(
    tables: Tuple[int, Dict[int, bytearray], int], picks: "list[tuple[int, ...]]"
) -> None:
    levels, pages, root = tables
    memory = Memory(levels, root)
    memory.pages = pages
    geometry = GEOMETRY[levels]
    addresses = []
    for *indices, offset in picks:
        address = offset
        for level, index in enumerate(indices[:levels], 1):
            address |= index << (12 + 9 * (level - 1))
        addresses.append(geometry.sign_extend(address))
    result = Bulk(memory.read, geometry, root).translate(numpy.array(addresses, numpy.uint64))
    walked = Bulk(memory.read, geometry, root).walk(numpy.array(addresses, numpy.uint64))
    assert walked.physical.tolist() == result.physical.tolist()
    assert walked.states.tolist() == result.states.tolist()
    tree = Tree(memory.read, geometry, root)
    for number, address in enumerate(addresses):
        one = walk(memory.read, geometry, root, address)
        assert STATES[int(result.states[number])] == one.state
        assert int(result.physical[number]) == (one.physical or 0)
        assert (1 << int(result.page_shifts[number])) * (one.state == "mapped") == one.page_size
        rest = [0] * (levels - len(one.steps))
        assert int(walked.depths[number]) == len(one.steps)
        assert walked.entry_addresses[number].tolist() == [s.entry_address for s in one.steps] + rest
        assert walked.values[number].tolist() == [s.value or 0 for s in one.steps] + rest
        (found,) = tree.ranges(address, address)
        if found[2] & OVER_LIMIT:
            continue
        state = "mapped" if found[2] & MAPPED else "not-in-dump" if found[2] & UNREADABLE else "unmapped"
        assert state == one.state
        if one.page_size:
            level = (found[2] & LEVEL_MASK) >> LEVEL_SHIFT
            assert 1 << geometry.shift(level) == one.page_size
        # A tree of the whole half and one of a narrow range agree about the address.
        if one.physical is not None:
            frame = FrameTree(memory.read, geometry, root, one.physical & ~0xFFF)
            assert any(found[2] & MAPPED for found in frame.ranges(address, address))


@settings(max_examples=60, deadline=None)
@given(page_tables())
def test_ranges_cover_their_stretch_without_gaps(tables: Tuple[int, Dict[int, bytearray], int]) -> None:
    levels, pages, root = tables
    memory = Memory(levels, root)
    memory.pages = pages
    start = GEOMETRY[levels].guard_hole.start
    cursor = start
    for low, high, _ in Tree(memory.read, GEOMETRY[levels], root).ranges(start, ALL):
        assert low == cursor <= high
        cursor = high + 1
    assert cursor == 1 << 64


@pytest.mark.parametrize("levels", [4, 5])
def test_a_table_that_refers_to_itself_ends(levels: int) -> None:
    memory = Memory(levels)
    for index in range(512):
        memory.entry(memory.root + 8 * index, memory.root | 0x63)
    started = time.process_time()
    tree = Tree(memory.read, GEOMETRY[levels], memory.root)
    ranges = tree.ranges(GEOMETRY[levels].guard_hole.start, ALL)
    assert time.process_time() - started < allowed(5)
    assert len(ranges) <= 2 * tree.REPEATED_LIMIT
    # A single table is used at every level: all addresses map it.
    assert walk(memory.read, GEOMETRY[levels], memory.root, ALL).physical == memory.root | 0xFFF


def test_wild_sharing_of_varied_tables_ends() -> None:
    """512 entries a level, each table shared by all, and the lowest varied: 2^27 ranges a pud."""
    memory = Memory()
    low, pmd, pud = 0x2000, 0x3000, 0x4000
    flags = [0x63, 0x61, 0, 0x63 | NX]
    tables = {
        low: [0x10000 * i | flags[i % 4] for i in range(512)],
        pmd: [low | (0x63 if i % 2 else 0x61) for i in range(512)],
        pud: [pmd | (0x63 if i % 2 else 0x61) for i in range(512)],
        memory.root: [pud | 0x63] * 512,
    }
    for address, entries in tables.items():
        memory.pages[address] = bytearray(struct.pack("<512Q", *entries))
    started = time.process_time()
    tree = Tree(memory.read, GEOMETRY[4], memory.root)
    ranges = tree.ranges(GEOMETRY[4].guard_hole.start, ALL)
    assert time.process_time() - started < allowed(20)
    assert tree.limited
    assert len(ranges) < 2 * tree.REPEATED_LIMIT
    assert any(key & OVER_LIMIT for _, _, key in ranges)
    # Ranges that were not walked are reported, and the rest is correct.
    assert mapped(Tree(memory.read, GEOMETRY[4], memory.root), KERNEL)


def test_bulk_takes_more_tables_than_it_holds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvintro.paging import bulk

    monkeypatch.setattr(bulk, "_BLOCK", 4)
    monkeypatch.setattr(bulk, "_BATCH", 37)
    memory = Memory()
    pages = {KERNEL + i * (1 << 21) * 3: 0x10_0000 + i * 0x1000 for i in range(100)}
    for virtual, physical in pages.items():
        memory.map(virtual, physical)
    gone = walk(memory.read, GEOMETRY[4], memory.root, KERNEL).steps[-1].entry_address & ~0xFFF
    del memory.pages[gone]
    addresses = numpy.array(list(pages), numpy.uint64)[::-1]
    result = Bulk(memory.read, GEOMETRY[4], memory.root).translate(addresses)
    assert result.physical.tolist()[:-1] == list(pages.values())[:0:-1]
    assert [STATES[s] for s in result.states.tolist()] == ["mapped"] * 99 + ["not-in-dump"]


def test_bulk_takes_nothing_and_refuses_a_matrix() -> None:
    memory = Memory()
    translator = Bulk(memory.read, GEOMETRY[4], memory.root)
    assert len(translator.translate(numpy.array([], numpy.uint64)).physical) == 0
    with pytest.raises(ValueError, match="dimension"):
        translator.translate(numpy.zeros((2, 2), numpy.uint64))


def test_asking_the_same_tree_again_is_no_repetition_of_tables() -> None:
    """Tables in one answer do not count toward the repetition limit of the next one."""
    memory = Memory()
    memory.map(0xFFFF888000000000, 0x200000)
    (entry,) = (e for e in range(256, 512) if memory.read(memory.root + 8 * e, 8) != bytes(8))
    memory.write(memory.root + 8 * 300, memory.read(memory.root + 8 * entry, 8))
    tree = Tree(memory.read, GEOMETRY[4], memory.root)
    tree.REPEATED_LIMIT = 16
    first = list(tree.ranges(0xFFFF800000000000, (1 << 64) - 1))
    for _ in range(20):
        assert len(list(tree.ranges(0xFFFF800000000000, (1 << 64) - 1))) == len(first)
    assert not tree.limited
