#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compare the census of pages with plain reading, drgn's loop and crash's, in one run.

    tools/bench_pages.py CORE VMLINUX

CORE should be the dump of a guest with 8 GB: tools/bench.py pages makes it, fetches VMLINUX, runs this script
and then crash.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from typing import Callable, Dict

import drgn
import numpy
from drgn.helpers.linux.mm import for_each_page

from kvintro.opening import open_kernel
from kvintro.queries.pages.census import Pages
from kvintro.source import Request

LOOPED = 400_000


def fastest(action: Callable[[], object], times: int) -> float:
    """The shortest of several runs, in seconds."""
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def drgn_loop(core: str, vmlinux: str) -> float:
    """Pages per second of drgn's own loop, without kvintro, reading only the flags."""
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])

    def loop() -> None:
        for page in itertools.islice(for_each_page(prog), LOOPED):
            page.flags.value_()

    return LOOPED / fastest(loop, 2)


def main() -> int:
    """Print the pages per second of each method, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("core", metavar="CORE")
    parser.add_argument("vmlinux", metavar="VMLINUX", help="with DWARF, for drgn")
    options = parser.parse_args()
    pages = Pages(open_kernel(Request(core=options.core)))
    total = pages.sections.total

    def read() -> None:
        for piece in pages.reader.pieces(pages.sections):
            assert piece.state == "read"

    def pass_over() -> None:
        for piece in pages.reader.pieces(pages.sections):
            numpy.frombuffer(piece.data, "<u8").sum()

    pages.census()
    rates: Dict[str, float] = {
        "pages": total,
        "census": total / fastest(pages.census, 7),
        "reading": total / fastest(read, 7),
        "pass": total / fastest(pass_over, 7),
        "drgn": drgn_loop(options.core, options.vmlinux),
    }
    print(json.dumps(rates))
    return 0


if __name__ == "__main__":
    sys.exit(main())
