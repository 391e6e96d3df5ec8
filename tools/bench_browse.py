#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure how soon ``kvintro browse`` answers a key while it counts all pages again and again.

    tools/bench_browse.py CORE [--keys N]

The time is from a key that moves the cursor to the first row that the terminal receives. Other programs delay
it, so the machine's load is printed, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browsing import Terminal  # noqa: E402

GOAL = 0.1  # seconds
_DOWN, _UP = b"\x1b[B", b"\x1b[A"
_ROW = rb"[0-9a-f]{16}"
_ENDLESS = """
from kvintro.browse.session import Session
once = Session.physical
def endless(*words):
    while True:
        once(*words)
Session.physical = endless
"""


def measure(core: str, keys: int, *, census: bool) -> List[float]:
    """The time in seconds of each key."""
    terminal = Terminal(core, before=f"exec({_ENDLESS!r}); ")
    for key, shown in ((b"", b"vmalloc"), (b"gvmalloc\r", b"caller")):
        terminal.press(key)
        terminal.read(shown)
    if census:
        terminal.press(b"p")
        terminal.read(rb"counting pages \d")
        terminal.press(b"\t")
        terminal.drain(1.0)  # the pane gets wider, which draws its rows again
    times = []
    for number in range(keys):
        terminal.drain(0.2)
        started = time.perf_counter()
        terminal.press(_UP if number % 2 else _DOWN)
        terminal.read(_ROW)
        times.append(time.perf_counter() - started)
        if terminal.process.poll() is not None:
            sys.exit(terminal.written.decode(errors="backslashreplace").strip())
    terminal.press(b"q")
    terminal.end()
    terminal.close()
    return times


def main() -> int:
    """Measure with and without a census; return 1 if a key took longer than the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("core")
    parser.add_argument("--keys", type=int, default=100)
    args = parser.parse_args()
    worst = 0.0
    for census in (False, True):
        times = sorted(measure(args.core, args.keys, census=census))
        worst = times[-1]
        print(
            f"{'while it counts pages' if census else 'idle'}: "
            f"median {1000 * statistics.median(times):.0f} ms, "
            f"95% within {1000 * times[len(times) * 95 // 100]:.0f} ms, longest {1000 * worst:.0f} ms"
        )
    print(f"goal {1000 * GOAL:.0f} ms: {'met' if worst <= GOAL else 'MISSED'}; load {os.getloadavg()[0]:.1f}")
    return int(worst > GOAL)


if __name__ == "__main__":
    sys.exit(main())
