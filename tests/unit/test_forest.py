# SPDX-License-Identifier: LGPL-2.1-or-later
"""The user halves of many page-table trees at once, against walks of each address and trees of each root."""

from __future__ import annotations

import random
from typing import List, Optional, Tuple

import pytest

from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.model import ALL
from kvintro.paging import Tree, walk
from kvintro.paging.forest import Forest, grow
from tests.synthetic import PAGE, Memory

FLAGS = (0x67, 0x65, 0x25, 0x8000000000000067, 0x8000000000000025, 0x100, 0x0)
Mapped = Tuple[int, int, int]  # virtual address, physical address, level


def grown(seed: int, levels: int, roots: int = 5) -> Tuple[Memory, List[int], List[List[Mapped]]]:
    """Memory with page tables of some processes, the roots, and what each maps."""
    chosen = random.Random(seed)
    memory = Memory(levels)
    form = ARCHITECTURE.form(levels, ALL)
    places: List[int] = []
    mapped: List[List[Mapped]] = []
    for number in range(roots):
        memory.root = 0x80000000 + number * PAGE
        memory.pages[memory.root] = bytearray(PAGE)
        places.append(memory.root)
        mapped.append([])
        for area in range(chosen.randrange(1, 6)):
            level = chosen.choice((1, 1, 1, 2, 3))
            # Each area has an entry of level 3 for itself, so that no large page takes a table's place.
            start = chosen.randrange(1 << (form.half_bits - 34)) * (8 << 30) + area * (1 << 30)
            for page in range(chosen.randrange(1, 40) if level < 3 else 1):
                virtual = start + (page << form.shift(level))
                physical = (
                    chosen.randrange(1, 1 << 10) << 30 if level == 3 else chosen.randrange(1, 512) << 21
                )
                flags = chosen.choice(FLAGS) if level == 1 else 0x67
                memory.map(virtual, physical, level, flags)
                if flags & 1:
                    mapped[-1].append((virtual, physical, level))
    return memory, places, mapped


def forest_of(memory: Memory, roots: List[int], end: Optional[int] = None) -> Optional[Forest]:
    return grow(memory.read, ARCHITECTURE.form(memory.levels, ALL), roots, memory_end=end)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("seed", range(10))
def test_the_ranges_are_those_of_a_tree_for_each_root(seed: int, levels: int) -> None:
    memory, roots, _ = grown(seed, levels)
    form = ARCHITECTURE.form(levels, ALL)
    forest = forest_of(memory, roots)
    assert forest is not None
    for root, found in zip(roots, forest.ranges()):
        expected = Tree(memory.read, form, root).ranges(0, form.user.end)
        assert list(found) == list(expected)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("seed", range(10))
def test_the_pages_are_those_that_a_walk_of_each_address_finds(seed: int, levels: int) -> None:
    memory, roots, mapped = grown(seed, levels)
    form = ARCHITECTURE.form(levels, ALL)
    forest = forest_of(memory, roots)
    assert forest is not None
    found = {
        (int(owner), int(address)): int(frame)
        for owners, addresses, frames in forest.pages()
        for owner, address, frame in zip(owners, addresses, frames)
    }
    for owner, pages in enumerate(mapped):
        assert sum(1 << 9 * (level - 1) for _, _, level in set(pages)) == sum(
            key[0] == owner for key in found
        )
        for virtual, _, level in pages:
            last = virtual + (1 << form.shift(level)) - PAGE
            for address in (virtual, last):
                physical = walk(memory.read, form, roots[owner], address).physical
                assert physical is not None and found[owner, address] == physical // PAGE


def test_unusual_tables_are_left_to_a_tree() -> None:
    memory, roots, mapped = grown(1, 4)
    form = ARCHITECTURE.form(4, ALL)
    virtual = next(virtual for virtual, _, level in mapped[0] if level == 1)
    steps = walk(memory.read, form, roots[0], virtual).steps
    lowest = steps[-1].entry_address & -PAGE
    usual = forest_of(memory, roots)
    assert usual is not None
    # A table is known to be invalid.
    assert grow(memory.read, form, roots, unusable=[lowest]) is None
    # Most entries of a table refer to addresses without RAM.
    assert forest_of(memory, roots, end=0x1000) is None
    # A root refers to a table twice.
    memory.entry(steps[2].entry_address ^ 0x800, lowest | 0x67)
    assert forest_of(memory, roots) is None
    memory.entry(steps[2].entry_address ^ 0x800, 0)
    assert forest_of(memory, roots) is not None
    # A table is not in the dump.
    del memory.pages[lowest]
    assert forest_of(memory, roots) is None
    assert forest_of(memory, roots[1:]) is not None


def test_entries_that_differ_in_an_address_only_are_told_apart_if_one_counts_as_empty() -> None:
    memory = Memory()
    form = ARCHITECTURE.form(4, ALL)
    memory.map(0, 0x200000)
    second = walk(memory.read, form, memory.root, 0).steps[2].entry_address & -PAGE
    # The processor may set A and D in an empty entry; one with an address is not empty.
    memory.entry(second + 8, 0x20)
    memory.entry(second + 16, 0x400020)
    forest = forest_of(memory, [memory.root])
    assert forest is not None
    (found,) = forest.ranges()
    assert list(found) == list(Tree(memory.read, form, memory.root).ranges(0, form.user.end))
