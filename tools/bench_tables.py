#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure the speed of page-table operations in one run: whole tables, lists and arrays of addresses.

    tools/bench_tables.py CORE

CORE should be the dump of a guest with 8 GB: `tools/bench.py tables` makes it and runs this. The synthetic
terabyte needs no core: a function generates its tables, so that only the walk is measured.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Tuple

import numpy
from drgn.helpers.linux.mm import follow_phys
from numpy.typing import NDArray

from kvintro.arch.x86_64 import ALL, ARCHITECTURE
from kvintro.opening import open_kernel
from kvintro.paging import Tree
from kvintro.queries.roots import kernel_root
from kvintro.render import render_stream
from kvintro.reports.ptdump import ptdump
from kvintro.source import Request

ROOT = Path(__file__).resolve().parent.parent
LINES = 1_000_000
ADDRESSES = 10_000_000
FOLLOWED = 20_000


def timed(action: Callable[[], object]) -> float:
    """The shortest of three runs, in seconds."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def verdict(name: str, value: float, unit: str, goal: float, *, less: bool = False) -> bool:
    """Print a figure and its goal; return whether the goal was missed."""
    missed = value > goal if less else value < goal
    print(f"  {name:52} {value:12,.2f} {unit:12} goal {goal:,g}: {'MISSED' if missed else 'met'}")
    return missed


def terabyte() -> Tuple[Callable[[int, int], bytes], int]:
    """A reader of page tables that map a terabyte in 4K pages, and the number of lowest-level entries."""
    pmd_tables = 1024
    root_at, pud_at, pmd_at, pte_at = 0x1000, 1 << 28, 1 << 29, 1 << 32

    def entries(first: int, count: int) -> "NDArray[numpy.uint64]":
        found: NDArray[numpy.uint64] = numpy.uint64(first | 0x63) + numpy.arange(
            count, dtype=numpy.uint64
        ) * numpy.uint64(4096)
        return found

    root = numpy.zeros(512, numpy.uint64)
    root[272:274] = entries(pud_at, 2)
    puds, pmds = entries(pmd_at, pmd_tables).tobytes(), entries(pte_at, 512 * pmd_tables).tobytes()
    # Two megabytes of entries at a time, as many as one pmd table points to; two kinds alternate.
    ptes = entries(0, 2 * 512 * 512) | numpy.uint64(1 << 63)
    ptes[700:705] = 0
    ptes[300_000] &= numpy.uint64(ALL ^ 2)
    kinds = ptes.tobytes()
    half = len(kinds) // 2

    def read(address: int, size: int) -> bytes:
        if address >= pte_at:
            start = half * (address >> 21 & 1)
            return bytes(kinds[start : start + size])
        for at, data in ((pmd_at, pmds), (pud_at, puds), (root_at, root.tobytes())):
            if address >= at:
                return data[address - at : address - at + size]
        raise AssertionError(address)

    return read, 512 * 512 * pmd_tables


def bench_terabyte() -> bool:
    """Entries per second over a terabyte of 4K pages."""
    read, count = terabyte()
    geometry = ARCHITECTURE.form(4, (1 << 52) - 1)

    def walk() -> None:
        tree = Tree(read, geometry, 0x1000, table_limit=1 << 30)
        assert len(tree.ranges(geometry.guard_hole.end + 1, ALL)) > 1000
        assert not tree.limited

    def read_only() -> None:
        for table in range(count // 512 // 512):
            numpy.frombuffer(read((1 << 32) + (table << 21), 1 << 21), "<u8").sum()

    seconds, reading = timed(walk), timed(read_only)
    missed = verdict("a terabyte mapped by 4K pages", count / seconds / 1e6, "M entries/s", 50)
    print(f"  {'ratio to reading and summing the same bytes':52} {seconds / reading:12.2f}")
    return missed


def main() -> int:
    """Run all measurements; return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("core", metavar="CORE")
    path = parser.parse_args().core
    print(f"tables: {path}, the best of three")
    missed = False
    started = time.perf_counter()
    kernel = open_kernel(Request(core=path))
    identity = kernel.identity
    print(f"  {'opening':52} {time.perf_counter() - started:12.2f} s   {identity.release}")
    started = time.perf_counter()
    size = sum(len(text) for text in render_stream(ptdump(kernel, kernel_root(kernel)), "text"))
    missed |= verdict(
        f"the full kernel table, {size // 1024} KB of text",
        time.perf_counter() - started,
        "s",
        0.2,
        less=True,
    )

    chosen = numpy.random.default_rng(1)
    memory = kernel.max_pfn.value << 12
    direct = numpy.uint64(kernel.linear_offset.value)
    spread = direct + chosen.integers(0, memory, ADDRESSES, dtype=numpy.uint64)
    seconds = timed(lambda: kernel.translate_array(spread))
    missed |= verdict("array, the direct map at random", ADDRESSES / seconds / 1e6, "M/s", 5)
    ranges = [(start, end) for start, end, key in kernel.kernel_ranges if key & 1]
    each = ADDRESSES // len(ranges)
    everywhere = numpy.concatenate(
        [chosen.integers(start, end, each, dtype=numpy.uint64, endpoint=True) for start, end in ranges]
    )
    chosen.shuffle(everywhere)
    seconds = timed(lambda: kernel.translate_array(everywhere))
    rate = len(everywhere) / seconds / 1e6
    missed |= verdict("array, all that is mapped, shuffled", rate, "M/s", 5)

    seconds = timed(lambda: kernel.walk_array(everywhere))
    missed |= verdict("the same with the entries of each level", len(everywhere) / seconds / 1e6, "M/s", 5)

    some = random.Random(1).sample(everywhere.tolist(), FOLLOWED)
    init_mm = kernel.prog["init_mm"].address_of_()
    seconds = timed(lambda: [follow_phys(init_mm, address).value_() for address in some])
    followed = FOLLOWED / seconds / 1e6
    times = f"{rate / followed:,.0f} times that"
    print(f"  {'for comparison: drgn follow_phys':52} {followed:12.2f} M/s          {times}")

    lines = "".join(f"{address:x}\n" for address in spread[:LINES].tolist()).encode()
    for form, goal in (("text", 200_000), ("json", 200_000)):
        command = [sys.executable, "-m", "kvintro", "-c", path, "translate", "--format", form, "-"]
        seconds = timed(
            lambda command=command: subprocess.run(  # type: ignore[misc]
                command, input=lines, stdout=subprocess.DEVNULL, cwd=ROOT, check=False
            )
        )
        missed |= verdict(f"{LINES:,} lines on standard input, {form}", LINES / seconds, "lines/s", goal)
    missed |= bench_terabyte()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  {'peak memory of this process':52} {peak:12.0f} MB")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
