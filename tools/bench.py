#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure time and memory of whole commands against another tool, alternately in one run.

    tools/bench.py [--runs N] [--large] [NAME...]

Machines differ and their speed drifts, so the result is the ratio to the other tool, pair by pair. The cores,
crash and the debuginfo that it needs come from the lab in vmcores/, which makes or fetches missing ones
(as root).
--large adds a dump of a guest with 8 GB (9 GB on file systems without sparse files).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "vmcores")]

from lab import boot, matrix, rootfs  # noqa: E402
from lab.common import LabError, built_dir, cache_dir  # noqa: E402
from lab.packages import Archive  # noqa: E402

from kvintro.source.elf import read_headers  # noqa: E402
from tests import hypervisors, saved_guests  # noqa: E402

CORE = "debian-6.12-4level-kaslr"
#: A core whose direct map has space for 16 TB.
WIDE = "debian-6.12-5level-nokaslr"
LARGE = "large"
BUSY = "busy"
#: Cores of the benchmark alone, of guests with 8 GB.
OWN = (LARGE, BUSY)


class Figures(NamedTuple):
    """Time and memory of one run."""

    seconds: float
    cpu: float
    megabytes: float


def run(command: List[str]) -> Figures:
    """Run a command to its end and discard its output; return the kernel's resource usage."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise LabError(f"exit status {process.returncode}: {' '.join(command)}")
    return Figures(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@dataclass(frozen=True)
class Case:
    """One comparison.

    :ivar goal: upper limits of the ratios of time, memory and processor time; None if there is no goal.
    :ivar uncached: makes a file that is removed from the page cache before each run.
    """

    name: str
    what: str
    peer: str
    ours: Callable[[ExitStack], List[str]]
    theirs: Callable[[ExitStack], List[str]]
    goal: Optional[float] = None
    memory_goal: Optional[float] = None
    cpu_goal: Optional[float] = None
    large: bool = False
    uncached: Optional[Callable[[ExitStack], Path]] = None


def kvintro(core: Path, *rest: str) -> List[str]:
    """Our command on a core."""
    return [sys.executable, "-m", "kvintro", "-c", str(core), *rest]


def core(name: str = CORE) -> Path:
    """A core of the lab, or one of :data:`OWN`. It is made if it does not exist.

    Another process makes it, because this process's peak memory would count for the commands that it starts.
    """
    path = directory(name) / "core.elf"
    if not path.exists():
        subprocess.run([sys.executable, __file__, "--make", name], check=True)
    return path


def directory(name: str) -> Path:
    """The directory of a core. The large ones are separate from the cores that tests use."""
    return cache_dir() / "bench" / name if name in OWN else built_dir() / name


def make(name: str) -> None:
    """Boot and dump, for :func:`core`."""
    archive = Archive()
    archive.update()
    rows = matrix.entries(archive.newest_series(matrix.NEWEST_MAJOR))
    entry = next(row for row in rows if row.name == (CORE if name in OWN else name))
    if name in OWN:
        entry = replace(entry, name=name, memory_mb=8192, busy=name == BUSY)
    boot.build(entry, archive, directory(name))


def crash(stack: ExitStack, path: Path, *commands: str) -> List[str]:
    """crash in its own Debian tree, with the core's vmlinux: load, run the commands and quit."""
    archive = Archive()
    archive.update()
    vmlinux = archive.debug_vmlinux("6.12")
    tree = rootfs.crash_tree()
    work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=tree / "work")))
    os.link(vmlinux.resolve(), work / "vmlinux")
    os.link(path.resolve(), work / "core")
    (work / "commands").write_text("".join(f"{c}\n" for c in (*commands, "quit")))
    inside = f"/work/{work.name}"
    program = ["chroot", str(tree), "crash", "-s", f"{inside}/vmlinux", f"{inside}/core"]
    return [*program, "-i", f"{inside}/commands"]


def raw(stack: ExitStack, gigabytes: int, *, kernel: bool) -> Path:
    """Physical memory as a file without holes, with or without a kernel in the first 256 MB."""
    path = cache_dir() / "bench" / f"{gigabytes}-{'with' if kernel else 'without'}-kernel.raw"
    path.parent.mkdir(parents=True, exist_ok=True)
    stack.callback(path.unlink, missing_ok=True)
    if path.exists():
        return path  # of this case
    filler = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(gigabytes << 10):
            file.write(filler)
        with core().open("rb") as source:
            for part in read_headers(source).segments if kernel else ():
                if part.paddr + part.filesz <= 256 << 20:
                    file.seek(part.paddr)
                    source.seek(part.offset)
                    for at in range(0, part.filesz, 1 << 20):
                        file.write(source.read(min(1 << 20, part.filesz - at)))
    return path


def saved(stack: ExitStack) -> Path:
    """A stream of a guest with 2 GB, as QEMU saves it; the kernel is in the first 256 MB."""
    path = cache_dir() / "bench" / "2.stream"
    source = raw(stack, 2, kernel=True)
    stack.callback(path.unlink, missing_ok=True)
    if path.exists():
        return path  # of this case
    size = source.stat().st_size
    empty = saved_guests.stream([("pc.ram", size)], [], parts=1)
    records_at = empty.rindex(b"\x03\0\0\0\x02") + 5
    with path.open("wb") as file, source.open("rb") as pages:
        file.write(empty[:records_at])
        last = ""
        for number in range(size // saved_guests.PAGE):
            page = pages.read(saved_guests.PAGE)
            file.write(saved_guests.record(("pc.ram", number, saved_guests.PLAIN, b"", page), last))
            last = "pc.ram"
        file.write(empty[records_at:])
    return path


def suspended(stack: ExitStack, gigabytes: int) -> Path:
    """The state of a VMware machine, with its memory beside it."""
    memory = raw(stack, gigabytes, kernel=True)
    path = memory.with_suffix(".vmss")
    stack.callback(path.unlink, missing_ok=True)
    path.write_bytes(hypervisors.vmware_state([(0, 0, memory.stat().st_size // hypervisors.PAGE)]))
    memory.with_suffix(".vmem").unlink(missing_ok=True)
    memory.with_suffix(".vmem").symlink_to(memory.name)
    stack.callback(memory.with_suffix(".vmem").unlink, missing_ok=True)
    return path


def reading(path: Path) -> List[str]:
    """A command that reads a file and discards the content."""
    return ["dd", f"if={path}", "of=/dev/null", "bs=4M", "status=none"]


def refused(command: List[str]) -> List[str]:
    """A command that must refuse its source."""
    return ["sh", "-c", f"{shlex.join(command)} 2>/dev/null; test $? -eq 3"]


CASES: Tuple[Case, ...] = (
    Case(
        "layout",
        "kvintro layout of a 256 MB core, 6.12",
        "crash -s VMLINUX CORE, quit",
        lambda stack: kvintro(core(), "layout"),
        lambda stack: crash(stack, core()),
        goal=1 / 8,
        memory_goal=1 / 4,
    ),
    Case(
        "size",
        "kvintro layout of an 8 GB core",
        "kvintro layout of a 256 MB core",
        lambda stack: kvintro(core(LARGE), "layout"),
        lambda stack: kvintro(core(), "layout"),
        large=True,
    ),
    Case(
        "scan",
        "kvintro info of 8 GB of raw memory: no kernel is in it, so all is looked through",
        "dd of the same to /dev/null",
        lambda stack: refused(kvintro(raw(stack, 8, kernel=False), "info")),
        lambda stack: reading(raw(stack, 8, kernel=False)),
        goal=2,
        large=True,
    ),
    Case(
        "found",
        "kvintro info of 8 GB of raw memory, the kernel in its first 256 MB",
        "kvintro info of 1 GB of raw memory, the same in it",
        lambda stack: kvintro(raw(stack, 8, kernel=True), "info"),
        lambda stack: kvintro(raw(stack, 1, kernel=True), "info"),
        goal=1.5,
        memory_goal=1.25,
        large=True,
    ),
    Case(
        "stream",
        "kvintro layout of a QEMU stream of 2 GB, read from the disk",
        "dd of the same to /dev/null",
        lambda stack: kvintro(saved(stack), "layout"),
        lambda stack: reading(saved(stack)),
        goal=1.5,
        large=True,
        uncached=saved,
    ),
    Case(
        "stream-cached",
        "kvintro layout of a QEMU stream of 2 GB, from the page cache",
        "dd of the same to /dev/null",
        lambda stack: kvintro(saved(stack), "layout"),
        lambda stack: reading(saved(stack)),
        large=True,
    ),
    Case(
        "stream-raw",
        "kvintro layout of a QEMU stream of 2 GB",
        "kvintro layout of the same memory as a raw file, which needs no index",
        lambda stack: kvintro(saved(stack), "layout"),
        lambda stack: kvintro(raw(stack, 2, kernel=True), "layout"),
        large=True,
    ),
    Case(
        "indexed",
        "kvintro layout of a suspended VMware machine of 8 GB",
        "kvintro layout of a suspended VMware machine of 1 GB",
        lambda stack: kvintro(suspended(stack, 8), "layout"),
        lambda stack: kvintro(suspended(stack, 1), "layout"),
        goal=1.25,
        memory_goal=1.25,
        large=True,
    ),
)


def _of_arm64(command: str, what: str) -> Case:
    """A command on the sample of arm64, against the same on the sample of x86-64, which is half as large."""

    def sample(name: str) -> List[str]:
        return kvintro(ROOT / "vmcores" / name / "core.kdump", command)

    return Case(
        f"arm64-{command}",
        f"kvintro {command}: {what}, the sample of arm64 (256 MB)",
        "the same, debian-6.12 (128 MB)",
        lambda stack: sample("arm64-6.12"),
        lambda stack: sample("debian-6.12"),
        cpu_goal=1.3,
    )


CASES += (
    _of_arm64("layout", "all regions"),
    _of_arm64("pages", "the census"),
    _of_arm64("ptdump", "the kernel's tables as text"),
)


def bench_pages(runs: int) -> bool:
    """Measure the census of 2,097,152 page frames and other tools; return whether a goal was missed."""
    path = core(LARGE)
    archive = Archive()
    archive.update()
    vmlinux = archive.debug_vmlinux("6.12")
    script = [sys.executable, str(ROOT / "tools" / "bench_pages.py"), str(path), str(vmlinux)]
    said = subprocess.run(script, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    rates = json.loads(said)
    # crash takes much longer to load than to run this; its own shell prints when the command began and ended.
    stamps = ["!date +%s.%N", *(["kmem -p > /dev/null", "!date +%s.%N"] * runs)]
    with ExitStack() as stack:
        command = crash(stack, path, *stamps)
        said = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    times = [float(line) for line in said.split()]
    rates["crash"] = rates["pages"] / min(b - a for a, b in zip(times, times[1:]))
    command = kvintro(path, "pages")
    run(command)
    peak = max(run(command).megabytes for _ in range(runs))
    print(f"pages: {rates['pages']:,} page frames of an 8 GB core, the best of some runs")
    missed = False
    for name, what, goal in (
        ("census", "kvintro pages", None),
        ("drgn", "drgn for_each_page, reading the flags", 70),
        ("crash", "crash kmem -p, output thrown away", 10),
        ("pass", "reading the same bytes and summing them", 1 / 5),
        ("reading", "reading the same bytes without examining them", None),
    ):
        ratio = rates["census"] / rates[name]
        verdict = ""
        if goal is not None:
            verdict = f"   {ratio:7.2f} times that; goal {goal:g}: {'met' if ratio >= goal else 'MISSED'}"
            missed |= ratio < goal
        print(f"  {rates[name] / 1e6:8.2f} million a second   {what:40}{verdict}".rstrip())
    for what, value, goal, more in (
        ("million page frames a second", rates["census"] / 1e6, 20, True),
        ("MB of memory at the peak", peak, 200, False),
    ):
        failed = value < goal if more else value > goal
        missed |= failed
        print(f"  {value:8.2f} {what}, goal {goal}: {'MISSED' if failed else 'met'}")
    return missed


def bench_tables(runs: int) -> bool:
    """Measure page tables and translation on the 8 GB core; return whether a goal was missed."""
    script = [sys.executable, str(ROOT / "tools" / "bench_tables.py"), str(core(LARGE))]
    sys.stdout.flush()
    return subprocess.run(script, cwd=ROOT, check=False).returncode != 0


def bench_busy(runs: int) -> bool:
    """Measure commands and the census on the core of a busy guest; return whether a goal was missed."""
    script = [sys.executable, str(ROOT / "tools" / "bench_busy.py"), str(core(BUSY)), "--kdumps"]
    sys.stdout.flush()
    return subprocess.run([*script, "--runs", str(runs)], cwd=ROOT, check=False).returncode != 0


def bench_growth(runs: int) -> bool:
    """Measure how times grow with processes, vmalloc areas and memory."""
    script = [sys.executable, str(ROOT / "tools" / "bench_growth.py"), str(core(WIDE))]
    sys.stdout.flush()
    return subprocess.run([*script, "--runs", str(runs)], cwd=ROOT, check=False).returncode != 0


#: Separate scripts, for dumps that are large or made large.
SCRIPTS = {"pages": bench_pages, "tables": bench_tables, "busy": bench_busy, "growth": bench_growth}


def main() -> int:
    """Run the cases; return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command (default: 5)")
    parser.add_argument("--large", action="store_true", help="cases that need the 8 GB core, too")
    parser.add_argument("--make", metavar="CORE", help=argparse.SUPPRESS)
    names = [*(c.name for c in CASES), *SCRIPTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    if options.make:
        make(options.make)
        return 0
    missed = False
    for case in CASES:
        if case.name not in options.names if options.names else case.large and not options.large:
            continue
        try:
            with ExitStack() as stack:
                missed |= _measure(case, stack, options.runs)
        except LabError as error:
            print(f"{case.name}: not measured: {error}")
            missed = True
    for name, script in SCRIPTS.items():
        if name not in options.names if options.names else not options.large:
            continue
        try:
            missed |= script(options.runs)
        except (LabError, subprocess.CalledProcessError) as error:
            print(f"{name}: not measured: {error}")
            missed = True
    return int(missed)


def _measure(case: Case, stack: ExitStack, runs: int) -> bool:
    ours, theirs = case.ours(stack), case.theirs(stack)
    run(ours), run(theirs)  # warm the page cache, for both
    file = stack.enter_context(case.uncached(stack).open("rb")) if case.uncached is not None else None

    def once(command: List[str]) -> Figures:
        if file is not None:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return run(command)

    pairs = [(once(ours), once(theirs)) for _ in range(runs)]
    print(f"{case.name}: medians of {runs} runs in turn")
    for label, figures in ((case.what, [p[0] for p in pairs]), (case.peer, [p[1] for p in pairs])):
        middle = [statistics.median(column) for column in zip(*figures)]
        print(f"  {middle[0]:7.2f} s  {middle[1]:7.2f} s cpu  {middle[2]:6.0f} MB   {label}")
    missed = False
    goals = ((0, "time", case.goal), (1, "cpu", case.cpu_goal), (2, "peak memory", case.memory_goal))
    for index, name, goal in goals:
        ratio = statistics.median(a[index] / b[index] for a, b in pairs)
        verdict = ""
        if goal is not None:
            verdict = f"   goal {goal:.3f}: {'met' if ratio <= goal else 'MISSED'}"
            missed |= ratio > goal
        print(f"  ratio of {name}: {ratio:.3f}{verdict}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
