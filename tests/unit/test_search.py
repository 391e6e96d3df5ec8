# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page frames in a page-table tree, against walks; trees whose entries share tables."""

from __future__ import annotations

import random
import struct
from typing import List, Tuple

import numpy
import pytest

from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.paging import walk
from kvintro.paging.search import find_frames
from tests.synthetic import PAGE, Memory

GB = 1 << 30
GEOMETRY = ARCHITECTURE.form(4, 0x000FFFFFFFFFF000)


def _find(memory: Memory, frames: List[int], limit: int = 1000) -> "Tuple[List[Tuple[int, int]], bool]":
    wanted = numpy.array(sorted(frames), numpy.uint64)
    found = find_frames(memory.read, GEOMETRY, memory.root, wanted, table_limit=1 << 12, place_limit=limit)
    assert not found.missing and not found.too_many_tables
    return sorted(found.places), found.too_many_places


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_is_what_walks_find(seed: int) -> None:
    chosen = random.Random(seed)
    memory = Memory()
    mapped = {}
    for _ in range(60):
        level = chosen.choice((1, 1, 1, 2, 3))
        size = PAGE << 9 * (level - 1)
        slot = chosen.randrange(4) * 512 * GB + level * GB  # pages of different sizes do not overlap
        virtual = slot + chosen.randrange(GB // size) * size
        mapped[virtual] = size
        memory.map(virtual, chosen.randrange(8) * GB + chosen.randrange(2) * (size % GB), level, flags=0x67)
    frames = [chosen.randrange(8) * (GB // PAGE) + chosen.choice((0, 1, 512, 700)) for _ in range(5)]
    expected = []
    for virtual, size in mapped.items():
        for frame in set(frames):
            at = walk(memory.read, GEOMETRY, memory.root, virtual).physical
            assert at is not None
            inside = frame * PAGE - (at & -size)
            if 0 <= inside < size:
                address = virtual + inside
                assert walk(memory.read, GEOMETRY, memory.root, address).physical == frame * PAGE
                expected.append((address, frame))
    assert _find(memory, list(set(frames))) == (sorted(expected), False)


def test_tables_that_lead_to_one_another_are_read_once() -> None:
    """One table at each level, 256 * 512 * 512 * 512 paths to one page: finds the wanted number quickly."""
    memory = Memory()
    tables = [0x200000 + level * PAGE for level in range(3)]
    for table, below in zip(tables, [0x500000, *tables]):
        memory.write(table, struct.pack("<Q", below | 0x67) * 512)
    memory.write(memory.root, struct.pack("<Q", tables[2] | 0x67) * 512)
    places, more = _find(memory, [0x500], limit=1000)
    assert more and len(set(places)) == 1000
    for address, frame in places:
        assert walk(memory.read, GEOMETRY, memory.root, address).physical == frame * PAGE
