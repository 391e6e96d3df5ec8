# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks, memory and searches against crash's, for kernels with a vmlinux in the lab's cache that crash reads.

Offsets of members are compared with those of pahole.

The walks are compared with vtop's, entry by entry. The PHYSICAL that crash prints is not compared, because
for addresses in the image's window it is the result of a formula, whatever is mapped there. Its walk is
compared: entries, values, and the page at the end.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest

from kvintro.arch.x86_64 import PRESENT
from kvintro.kernels import Kernel
from kvintro.queries.members import Member
from kvintro.queries.translate import Input, Translator
from kvintro.reports.read import read
from kvintro.reports.search import Question, search
from tests.conftest import ROOT, Core

CACHE = Path(
    os.environ.get("KVINTRO_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvintro"
)
Answer = Tuple[List[int], Optional[int]]


def _crash(vmlinux: Path, core: Path, commands: List[str], **more: Any) -> str:
    if os.geteuid() != 0 or not (CACHE / "crash/usr/bin/crash").exists():
        pytest.skip("there is no crash in the lab's cache (tools/bench.py gets it, as root)")
    sys.path.insert(0, str(ROOT / "vmcores"))
    try:
        from lab import rootfs
    finally:
        sys.path.pop(0)
    return str(rootfs.crash(vmlinux, core, commands, **more))


def _answers(text: str) -> Dict[int, Answer]:
    """By virtual address: values of the entries from the root down, and the page's address."""
    found: Dict[int, Answer] = {}
    for block in re.split(r"^VIRTUAL\s+PHYSICAL\s*$", text, flags=re.M)[1:]:
        virtual = int(block.split()[0], 16)
        walk = block.split("\n\n")[1] if "\n\n" in block else block
        values = [int(v, 16) for v in re.findall(r"(?:PAGE DIRECTORY: |=> )([0-9a-f]+)", walk)]
        page = re.search(r"^\s*PAGE: ([0-9a-f]+)", walk, re.M)
        found[virtual] = values, None if page is None else int(page[1], 16)
    return found


@pytest.fixture
def said(core: Core, kernel: Kernel) -> str:
    """What crash prints for all tests, because it takes its time to start."""
    vmlinux = CACHE / "dbg" / core.truth("release").strip() / "vmlinux"
    if not vmlinux.exists():
        pytest.skip(f"there is no {vmlinux.name} of this kernel in the lab's cache")
    if not core.meta["release"].startswith(("5.10.", "6.1.", "6.12.")):
        pytest.skip("crash 9.0.2 does not read this kernel: it ends while it starts")
    if not core.meta["kaslr"] or not core.meta["pti"] or core.meta["efi"]:
        pytest.skip("one core of each kernel and number of levels is enough: crash takes its time")
    commands = [f"vtop {address:x}" for address in _addresses(kernel)]
    commands += [f"rd -64 {start:x} {count}" for start, count in _stretches(kernel)]
    commands += [f"rd -p -64 {_physical(kernel, 'init_task'):x} 64"]
    return _once(vmlinux, core.path, (*commands, f"search -k {kernel.symbol('init_task'):x}"))


@lru_cache(maxsize=1)
def _once(vmlinux: Path, core: Path, commands: Tuple[str, ...]) -> str:
    return _crash(vmlinux, core, [*commands])


def _addresses(kernel: Kernel) -> List[int]:
    """Addresses to translate: in each mapped range, and in some unmapped ones."""
    chosen = random.Random(5)
    ranges = [(start, end) for start, end, key in kernel.kernel_ranges if key & PRESENT]
    holes = [(start, end) for start, end, key in kernel.kernel_ranges if not key & PRESENT]
    addresses = [chosen.randint(*pair) for pair in ranges]
    return addresses + [chosen.randint(*pair) for pair in chosen.sample(holes, min(60, len(holes)))]


def _physical(kernel: Kernel, symbol: str) -> int:
    found = kernel.walk(kernel.symbol(symbol)).physical
    assert found is not None
    return found


def _stretches(kernel: Kernel) -> List[Tuple[int, int]]:
    """Addresses and numbers of words to read: data, code, the direct map, the memory map."""
    image = [(kernel.symbol("init_task"), 512), (kernel.symbol("_text"), 32)]
    direct = _physical(kernel, "init_task") + kernel.linear_offset.value
    return [*image, (direct, 64), (kernel.place("vmemmap").range.start + 64, 32)]


def test_memory_is_that_of_crash(kernel: Kernel, said: str) -> None:
    words = {}
    for line in re.findall(r"^ *([0-9a-f]+):  ((?:[0-9a-f]{16} )+)", said, re.M):
        for number, value in enumerate(line[1].split()):
            words[int(line[0], 16) + 8 * number] = int(value, 16)
    start = _physical(kernel, "init_task")
    compared = 0
    for physical, stretches in ((False, _stretches(kernel)), (True, [(start, 64)])):
        for address, count in stretches:
            rows = read(kernel, f"{address:x}", size=8 * count, physical=physical).tables[0].rows
            assert [(row.address, row.value) for row in rows] == [
                (row.address, words[row.address]) for row in rows
            ]
            compared += len(rows)
    assert compared == len(words) == 704


def test_a_search_finds_what_crash_finds(kernel: Kernel, said: str) -> None:
    """crash lists each address that a page is mapped at, kvintro one.

    crash also lists addresses in the image's window where nothing is mapped, as it reads by a formula there.
    """
    places = [int(address, 16) for address in re.findall(r"^([0-9a-f]{16}): [0-9a-f]{16} *$", said, re.M)]
    assert len(places) > 20
    rows = search(kernel, Question(to="init_task"), limit=1000).tables[0].rows
    found = [kernel.walk(row.address).physical for row in rows]
    assert len(found) == len(set(found))
    theirs = {place: kernel.walk(place).physical for place in places}
    image = kernel.place("kernel_image").range
    assert set(found) == {
        physical for place, physical in theirs.items() if physical is not None or place not in image
    }


def _of_pahole(vmlinux: Path, type_name: str) -> Dict[str, Tuple[int, int]]:
    """Offset in bits, and size in bytes, of each member; also of those in structures without a name."""
    command = ["pahole", "-F", "btf", "-C", type_name, str(vmlinux)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    levels: List[Dict[str, Tuple[int, int]]] = [{}]
    for line in text.splitlines()[1:]:
        if line.endswith("{"):
            levels.append({})
        match = re.search(r";\s*/\* *(\d+)(?:: *(\d+))? +(\d+) \*/$", line)
        if match is None:
            continue
        inside = levels.pop() if line.strip().startswith("}") else {}
        declared = re.sub(r"__attribute__\(\(.*\)\)", "", line[: match.start()]).rstrip()
        name = re.search(r"\(\* *(\w+)|(\w+)(?:\[\d*\])*(?::\d+)?$", declared)
        bit = 8 * int(match[1]) + int(match[2] or 0)
        levels[-1].update(inside if name is None else {name[1] or name[2]: (bit, int(match[3]))})
    return levels[0]


@pytest.mark.skipif(not shutil.which("pahole"), reason="pahole is missing (Debian: apt install dwarves)")
def test_members_are_where_pahole_says(core: Core, kernel: Kernel) -> None:
    vmlinux = CACHE / "dbg" / core.truth("release").strip() / "vmlinux"
    if not vmlinux.exists():
        pytest.skip(f"there is no {vmlinux.name} of this kernel in the lab's cache")
    if kernel.source.types == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    compared = 0
    for name in ("task_struct", "mm_struct", "page", "module", "vm_area_struct", "sock", "file"):
        rows = read(kernel, "init_task", type_name=f"struct {name}").tables[0].rows
        named = [row for row in rows if isinstance(row, Member) and row.label]
        ours = {row.name: row for row in named if re.fullmatch(r"\w+", row.name)}
        theirs = _of_pahole(vmlinux, name)
        assert {row.name: 8 * row.offset + (row.bit_offset or 0) for row in ours.values()} == {
            member: bit for member, (bit, _) in theirs.items()
        }
        whole = [row for row in ours.values() if row.bit_size is None and row.size is not None]
        assert {row.name: row.size for row in whole} == {row.name: theirs[row.name][1] for row in whole}
        compared += len(whole)
    assert compared > 300


def test_walks_are_those_of_crash(kernel: Kernel, said: str) -> None:
    answers = _answers(said)
    assert len(answers) > 100
    translator = Translator(kernel)
    mapped = 0
    for address, (values, page) in answers.items():
        found = translator.translate(Input("", address, "virtual"))
        if found.root != "init_top_pgt":
            continue
        ours = [step.value for step in found.walk]
        # crash ends a walk at the first entry that is 0 and does not always print it. The root's entry is its
        # PAGE DIRECTORY, with four levels and with five.
        assert values == [value for value in ours if value is not None][: len(values)], hex(address)
        if page is None:
            assert found.state == "unmapped", hex(address)
            continue
        mapped += 1
        if found.state == "mapped":
            assert len(values) == len(ours), hex(address)
            assert found.physical is not None and found.page_size is not None
            assert found.physical & -found.page_size == page & -found.page_size, hex(address)
        else:
            # It also prints a page for entries that are not present.
            assert not (ours[-1] or 0) & PRESENT, hex(address)
    assert mapped > 80
