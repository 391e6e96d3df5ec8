# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shared by the tests of `show`: its JSON, and the truth as numbers."""

from __future__ import annotations

import gzip
import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import pytest

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Asked, Report
from kvintro.opening import open_kernel
from kvintro.render import render
from kvintro.reports.show import Selection, show
from kvintro.source import Request
from tests.conftest import Core

#: Symbols that /proc/kallsyms of every kernel has; shipped cores keep only a sample of the lines.
WHOLE = 20_000


def document(kernel: Kernel, region: str, **asked: Any) -> Any:
    """``show REGION --json``; skips if this kernel does not have the region."""
    report = show(kernel, region, Asked(**asked), Selection(within=asked.get("within")))
    found = json.loads(render(report, "json"))
    assert found["schema"] == "kvintro.show/1"
    if found["region"]["state"] == "absent":
        assert found["region"]["reason"]
        pytest.skip(f"no {region} here: {found['region']['reason']}")
    return found


def clean(found: Any) -> Any:
    """Assert that nothing is missing and no mapping contradicts the page tables; return the document."""
    assert found["partial"] is False
    for rows in found.values():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            assert [row for row in rows if row.get("problem")] == []
    return found


def number(text: Optional[str]) -> int:
    assert text is not None
    return int(text, 16)


def text_of(report: Report) -> List[str]:
    """Its lines as text."""
    return render(report, "text").splitlines()


def all_symbols(core: Core, *, whole: bool = False) -> List[Tuple[str, int]]:
    """(name, address) of the kernel image as the guest saw it in /proc/kallsyms.

    :param whole: skip the test if the truth is only a sample, as in the shipped cores.
    """
    if not core.has_truth("kallsyms.gz"):
        pytest.skip(f"{core.name} was taken without kallsyms")
    data = gzip.decompress((core.truth_directory / "kallsyms.gz").read_bytes()).decode()
    lines = [line.split() for line in data.splitlines()]
    if whole and len(lines) < WHOLE:
        pytest.skip(f"{core.name} has a sample of its symbols only")
    return [(fields[2], int(fields[0], 16)) for fields in lines if len(fields) == 3]


def kallsyms(core: Core, *names: str) -> Dict[str, int]:
    """Symbols by name; of several with the same name, the first. Skips if a requested one is missing."""
    found = dict(reversed(all_symbols(core)))
    if not set(names) <= set(found):
        pytest.skip(f"{core.name}'s symbols do not have {', '.join(set(names) - set(found))}")
    return found


def values(core: Core) -> Dict[str, bytes]:
    """Variables as the guest read them from its own /proc/kcore, as bytes."""
    found = {}
    for line in core.truth("values").splitlines():
        fields = line.split()
        if len(fields) != 4 or line.startswith("#"):
            continue
        if fields[3].startswith("bytes:"):
            found[fields[0]] = bytes.fromhex(fields[3][len("bytes:") :])
        else:
            found[fields[0]] = int(fields[3], 0).to_bytes(int(fields[2]), "little")
    return found


@dataclass(frozen=True)
class Fence:
    """KFENCE's pool according to the kernel's own list.

    :ivar pages: for each page's address ``guard``, or the state of its object: ``unused``,
        ``allocated``, ``freed``.
    :ivar objects: for each object that was ever used: its page, first and last address, and cache.
    """

    pages: Dict[int, str]
    objects: Dict[int, Tuple[int, int, int, str]]


def fence_of(core: Core) -> Optional[Fence]:
    """Read /sys/kernel/debug/kfence/objects and ``__kfence_pool``; None for kernels without a pool.

    mm/kfence/core.c:kfence_init_pool: one guard page, then pairs of a guard page and an object's page, then
    one guard page.
    """
    if not core.has_truth("kfence"):
        return None
    start = int.from_bytes(values(core)["__kfence_pool"], "little")
    pages = {start: "guard", start + 4096: "guard"}
    objects = {}
    for text in re.split(r"^-+\n", core.truth("kfence"), flags=re.M):
        head = re.match(r"kfence-#(\d+)(?: (unused)|: 0x(\w+)-0x(\w+), size=(\d+), cache=(\S+))", text)
        if not head:
            assert not text.strip()
            continue
        at = start + 2 * 4096 * (int(head[1]) + 1)
        freed = re.search(r"^freed by", text, re.M)
        pages[at] = "unused" if head[2] else "freed" if freed else "allocated"
        pages[at + 4096] = "guard"
        if not head[2]:
            objects[int(head[1])] = (at, int(head[3], 16), int(head[4], 16), head[6])
            assert int(head[4], 16) - int(head[3], 16) + 1 == int(head[5])
    assert len(pages) > 2
    return Fence(pages, objects)


def broken_frames(core: Core) -> List[int]:
    """Page frames that the workload broke by a machine check."""
    found = re.findall(r" machine_check.* physical (0x\w+) ", core.truth("workload"))
    return [int(text, 16) >> 12 for text in found]


def needs(kernel: Kernel, *names: str) -> None:
    """Skip the test if a variable may exist without a name (CONFIG_KALLSYMS_ALL is off)."""
    for name in names:
        try:
            kernel.has_symbol(name)
        except Unavailable as error:
            pytest.skip(error.what)


def registers(core: Core) -> Dict[int, Dict[str, int]]:
    """By CPU: the values of GDTR, IDTR and TR from QEMU, under the names GDT, IDT and TR.

    A CPU that the kernel never started (maxcpus=1) does not have the kernel's values, and is omitted.
    """
    found = {}
    for cpu, text in re.findall(r"^CPU#(\d+)(.*?)(?=^CPU#|\Z)", core.truth("registers"), re.M | re.S):
        held = {name: int(base, 16) for name, base in re.findall(r"^(GDT|IDT)= +(\w+)", text, re.M)}
        task = re.search(r"^TR =\w+ (\w+)", text, re.M)
        assert task
        if held["GDT"] >> 63:
            found[int(cpu)] = {**held, "TR": int(task[1], 16)}
    assert len(found) == (1 if "maxcpus=1" in core.truth("cmdline").split() else processors(core))
    return found


def processors(core: Core) -> int:
    """The number of CPUs, started or not."""
    return len(re.findall(r"^CPU#\d+", core.truth("registers"), re.M))


class PtdumpLine(NamedTuple):
    """A line of the kernel's own page-table dump that maps something; ``end`` is exclusive."""

    start: int
    end: int
    flags: str
    level: str

    @property
    def rights(self) -> str:
        return (
            "r"
            + ("w" if "RW" in self.flags.split() else "-")
            + ("-" if "NX" in self.flags.split() else "x")
            + ("u" if "USR" in self.flags.split() else "")
        )


_LINE = re.compile(r"0x(\w+)-0x(\w+) +\d+[KMGTPE] +(.*?)(\w+)$")


def ptdump(core: Core, heading: str, file: str = "ptdump/kernel") -> List[PtdumpLine]:
    """The lines of present entries that the kernel printed under a heading."""
    lines = []
    under = None
    for line in core.truth(file).splitlines():
        if line.startswith("---["):
            under = line[5:-5]
        elif under == heading and line.startswith("0x"):
            match = _LINE.match(line)
            assert match, line
            if match[3].strip():
                end = int(match[2], 16) or 1 << 64
                lines.append(PtdumpLine(int(match[1], 16), end, match[3], match[4]))
    return lines


#: With a physical address; of the flags, only those that are set have their letter.
_RISCV64_LINE = re.compile(r"0x(\w+)-0x(\w+) +0x\w+ +\d+[KMGTPE] (\w+) (.*)")
_ARM64_LINE = re.compile(r"0x(\w+)-0x(\w+) +\d+[KMGTPE] (\w+) +(.*)")


def ptdump_in(core: Core, found: Any) -> List[PtdumpLine]:
    """The lines of present entries between the bounds of a region, cut at these bounds.

    :param found: the document of ``show``.
    """
    start, end = number(found["region"]["start"]), number(found["region"]["end"]) + 1
    lines = []
    for text in core.truth("ptdump/kernel").splitlines():
        if not text.startswith("0x"):
            continue
        if core.architecture == "arm64":
            match = _ARM64_LINE.match(text)
            level, flags = (match[3], match[4]) if match else ("", "")
        elif core.architecture == "riscv64":
            match = _RISCV64_LINE.match(text)
            letters = match[4].split() if match else []
            words = {"W": "RW", "U": "USR", "R": "R"}
            shown = [words[letter] for letter in letters if letter in words]
            # Without V the processor faults: memfd_secret only takes that bit away.
            flags = " ".join([*shown, *(["NX"] if "X" not in letters else [])]) if "V" in letters else ""
            level = match[3] if match else ""
        else:
            match = _LINE.match(text)
            level, flags = (match[4], match[3]) if match else ("", "")
        if match is None or not flags.strip() or "F" in flags.split():
            continue
        low, high = max(int(match[1], 16), start), min(int(match[2], 16) or 1 << 64, end)
        if low < high:
            lines.append(PtdumpLine(low, high, flags, level))
    return lines


def merged(lines: Iterator[Tuple[int, int, str]]) -> List[Tuple[int, int, str]]:
    """(start, end exclusive, rights), with equal neighbours merged."""
    out: List[Tuple[int, int, str]] = []
    for start, end, rights in lines:
        if out and out[-1][1] == start and out[-1][2] == rights:
            out[-1] = (out[-1][0], end, rights)
        else:
            out.append((start, end, rights))
    return out


def fresh(core: Core) -> Kernel:
    """The core, opened again for tests that damage it."""
    return open_kernel(Request(core=str(core.path)))


def overlay(kernel: Kernel, address: int, value: int, *, physical: bool = False) -> None:
    """Replace eight bytes of memory."""
    data = struct.pack("<Q", value)

    def read(start: int, count: int, offset: int, physical: bool) -> bytes:
        return data[offset : offset + count]

    kernel.prog.add_memory_segment(address, 8, read, physical)
    kernel._kept.clear()  # what was read before


WILD = {
    "a wild pointer": 0xDEAD_4EAD_0000_0100,
    "NULL": 0,
    "a user address": 0x7FFF_0000_1000,
    "nothing mapped": 0xFFFF_FFFF_FFFF_0000,
}
