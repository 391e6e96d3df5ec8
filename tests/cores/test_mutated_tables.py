# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real page tables with randomly changed entries: every command still ends in bounded time."""

from __future__ import annotations

import random
import struct
import time
import zlib
from typing import Dict, List

import numpy
import pytest

from kvintro.arch.x86_64 import ALL
from kvintro.arch.x86_64.facts import x86_form
from kvintro.errors import KvintroError, NotInDump
from kvintro.kernels import Kernel
from kvintro.paging import walk
from kvintro.paging.bulk import STATES
from kvintro.queries.aliases import aliases
from kvintro.queries.roots import kernel_root
from kvintro.queries.translate import Input, Translator
from kvintro.regions import regions_of
from kvintro.render import render, render_stream
from kvintro.reports.check import check
from kvintro.reports.layout import layout
from kvintro.reports.ptdump import ptdump
from tests.conftest import Core
from tests.cores.patched import overlaid
from tests.timing import allowed

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

# Generous, for machines under load; this only rules out dumps that never end.
MAX_SECONDS = 120


class Mutated(Kernel):
    """A kernel whose page tables are wrong or partly missing; other memory is unchanged."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        super().__init__(kernel.source, regions_of)
        self._entries: Dict[int, int] = {}
        self._gone: List[int] = []
        chosen = random.Random(seed)
        tables = sorted(_tables(kernel, chosen))
        for _ in range(chosen.choice([1, 5, 50])):
            entry = chosen.choice(tables) + 8 * chosen.randrange(512)
            (old,) = struct.unpack("<Q", kernel.read_physical(entry, 8))
            self._entries[entry] = chosen.choice(
                [
                    old ^ 1 << chosen.randrange(64),
                    chosen.randrange(1 << 64),
                    chosen.choice(tables) | 0x63,
                    entry & ~0xFFF | 0x67,
                    kernel.root.value | 0x67,
                    old | 0x80,
                ]
            )
        for _ in range(chosen.choice([0, 0, 1, 3])):
            self._gone.append(chosen.choice(tables))

    def read_physical(self, address: int, size: int) -> bytes:
        if any(address < gone + 4096 and gone < address + size for gone in self._gone):
            raise NotInDump(address, size, physical=True)
        return overlaid(super().read_physical(address, size), address, self._entries)


def _tables(kernel: Kernel, chosen: random.Random) -> "set[int]":
    """Page tables on the paths to some mapped addresses."""
    found = set()
    ranges = [(start, end) for start, end, key in kernel.kernel_ranges if key & 1]
    for start, end in chosen.sample(ranges, min(30, len(ranges))):
        for step in kernel.walk(chosen.randint(start, end)).steps:
            found.add(step.entry_address & ~0xFFF)
    return found


@pytest.mark.parametrize("part", range(3))
def test_every_question_has_an_answer(core: Core, kernel: Kernel, part: int) -> None:
    seed = zlib.crc32(f"{core.name} {part}".encode())  # different damage on every core
    started = time.process_time()
    mutated = Mutated(kernel, seed)
    chosen = random.Random(seed)
    text = "".join(render_stream(ptdump(mutated, kernel_root(mutated)), "text"))
    assert text.startswith("---[ User Space ]---\n0x0000000000000000-")
    addresses = [
        *(start + chosen.randrange(1 << 21) & ALL for start, _, _ in mutated.kernel_ranges),
        *(chosen.randrange(1 << 64) for _ in range(200)),
    ][:2000]
    physical, states = mutated.translate_array(numpy.array(addresses, numpy.uint64))
    translator = Translator(mutated)
    for number, address in enumerate(addresses):
        one = walk(mutated.read_physical, x86_form(mutated), mutated.root.value, address)
        assert (STATES[int(states[number])], int(physical[number])) == (one.state, one.physical or 0)
        if number % 20 == 0:
            found = translator.translate(Input("", address, "virtual"))
            assert found.state in STATES
            assert (found.physical is None) == (found.state != "mapped")
    for address in (0, 0x1000, mutated.root.value, chosen.randrange(1 << 28)):
        assert len(aliases(mutated, address).found) < 1 << 22
    for report in (check(mutated), layout(mutated)):
        assert render(report, "json").startswith("{")
        assert render(report, "text")
    assert time.process_time() - started < allowed(MAX_SECONDS)


@pytest.mark.parametrize("seed", range(3))
def test_a_direct_map_that_lies_is_told(kernel: Kernel, seed: int) -> None:
    """If the region's rule and the tables disagree, the tables win, and the answer says so."""
    chosen = random.Random(seed)
    mutated = Mutated(kernel, seed)
    mutated._entries.clear()
    mutated._gone.clear()
    try:
        base = kernel.linear_offset.value
    except KvintroError as error:
        pytest.skip(error.what)
    while True:
        physical = chosen.randrange(1 << 20, 96 << 20) & ~0xFFF
        honest = kernel.walk(base + physical)
        if honest.state == "mapped":
            break
    last = honest.steps[-1]
    assert last.value is not None
    mutated._entries[last.entry_address] = last.value ^ honest.page_size << 4
    translator = Translator(mutated)
    lied = translator.translate(Input("", base + physical, "virtual"))
    assert (lied.state, lied.method) == ("mapped", "walk")
    assert lied.physical == physical ^ honest.page_size << 4
    assert lied.note is not None
    assert f"{physical:016x}" in lied.note
    # In the other direction: this page is not mapped where it should be.
    back = translator.translate(Input("", physical, "physical"))
    assert (back.state, back.virtual, back.physical) == ("unmapped", None, physical)
    assert back.note is not None
