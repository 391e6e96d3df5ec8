#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure commands and the census on the dump of a busy guest, in processor time.

    tools/bench_busy.py CORE [--runs N] [--kdumps]

tools/bench.py busy makes CORE and runs this. --kdumps also measures dumps that makedumpfile makes of it, with
each compression, filtered and not; they are made beside CORE and take some gigabytes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Tuple

from kvintro.opening import open_kernel
from kvintro.queries.pages.census import Pages
from kvintro.queries.pages.jobs import census_in_jobs
from kvintro.source import Request

ROOT = Path(__file__).resolve().parent.parent
#: Commands and the goals for their processor time in seconds.
COMMANDS = (
    (("layout",), 0.4),
    (("check",), 3.0),
    (("report",), 4.0),
    (("user", "--all"), 1.0),
    (("show", "vmalloc"), 0.6),
)
MOST_MEGABYTES = 200
#: makedumpfile's options, by the kind of compression.
COMPRESSIONS = {"zlib": "-c", "lzo": "-l", "zstd": "-z"}


class Cost(NamedTuple):
    """Processor time in seconds, and peak memory in MB."""

    seconds: float
    megabytes: float


def cost(command: List[str], runs: int) -> Cost:
    """The medians over some runs of a command."""
    costs = []
    for _ in range(runs):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"exit status {process.returncode}: {' '.join(command)}")
        costs.append((usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    return Cost(*map(statistics.median, zip(*costs)))


def verdict(value: float, goal: float, *, less: bool = True) -> Tuple[str, bool]:
    """The goal as text, and whether it was missed."""
    missed = value > goal if less else value < goal
    return f"goal {goal:g}: {'MISSED' if missed else 'met'}", missed


def commands(core: Path, runs: int) -> bool:
    """Measure whole commands; return whether a goal was missed."""
    print(f"commands, medians of {runs} runs, processor time and peak memory")
    any_missed = False
    for words, goal in COMMANDS:
        command = [sys.executable, "-m", "kvintro", "-c", str(core), "--format", "json", *words]
        cost(command, 1)
        found = cost(command, runs)
        text, missed = verdict(found.seconds, goal)
        more, too_large = verdict(found.megabytes, MOST_MEGABYTES)
        print(f"  {' '.join(words):14} {found.seconds:6.2f} s, {text}; {found.megabytes:4.0f} MB, {more}")
        any_missed |= missed or too_large
    return any_missed


def cpu(action: Callable[[], object]) -> float:
    """Processor time of this process."""
    started = time.process_time()
    action()
    return time.process_time() - started


def _read(pages: Pages) -> None:
    for _ in pages.reader.pieces(pages.sections):
        pass


def census(path: Path, runs: int, name: str, most: float) -> bool:
    """Measure a census against reading the same bytes, each from a dump just opened.

    :param most: goal for the ratio of both.
    :return: whether it was missed.
    """
    one, reading, two = [], [], []
    total = 0
    for _ in range(runs):
        pages = Pages(open_kernel(Request(core=str(path))))
        total = pages.sections.total
        reading.append(cpu(partial(_read, pages)))
        pages = Pages(open_kernel(Request(core=str(path))))
        one.append(pages.sections.total and cpu(pages.census))
        pages = Pages(open_kernel(Request(core=str(path))))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = pages.sections.total and cpu(partial(census_in_jobs, pages, 2))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Two workers have equal shares, and wait for nothing.
        two.append(own + (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2)
    alone, plain, shared = map(statistics.median, (one, reading, two))
    text, missed = verdict(alone / plain, most)
    rates = f"{total / alone / 1e6:6.1f} million page frames a second; reading {total / plain / 1e6:6.1f}"
    print(
        f"  {name:18} {rates}; {alone / plain:.2f} times as long, {text}; "
        f"two processes {alone / shared:.2f} times as fast"
    )
    return missed


def kdumps(core: Path) -> Iterator[Tuple[str, Path]]:
    """Dumps that makedumpfile makes of the core, made if they do not exist."""
    if shutil.which("makedumpfile") is None:
        raise SystemExit("makedumpfile is missing: apt-get install makedumpfile")
    # makedumpfile does not read QEMU's own ELF files.
    vmcore = core.with_name("vmcore")
    for name, option in COMPRESSIONS.items():
        for level in (0, 31):
            path = core.with_name(f"{name}-{level}.kdump")
            if not path.exists():
                if not vmcore.exists():
                    convert = ["-m", "kvintro", "-c", str(core), "convert", "-o", str(vmcore)]
                    subprocess.run(
                        [sys.executable, *convert], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
                    )
                making = ["makedumpfile", "--message-level", "1", option, "-d", str(level)]
                subprocess.run([*making, str(vmcore), str(path)], check=True)
            yield f"{name}, -d {level}", path
    vmcore.unlink(missing_ok=True)


def main() -> int:
    """Print all figures; return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("core", metavar="CORE", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kdumps", action="store_true")
    options = parser.parse_args()
    missed = commands(options.core, options.runs)
    print(f"census, medians of {options.runs} runs, processor time")
    missed |= census(options.core, options.runs, "ELF", 1.6)
    for name, path in kdumps(options.core) if options.kdumps else ():
        missed |= census(path, options.runs, name, 1.15)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
