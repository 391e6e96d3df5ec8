# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks against crash's vtop, entry by entry, for kernels with a vmlinux in the lab's cache that crash reads.

The PHYSICAL that crash prints is not compared, because for addresses in the image's window it is the result
of a formula, whatever is mapped there. Its walk is compared: entries, values, and the page at the end.
"""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest

from kvintro.arch.x86_64 import PRESENT
from kvintro.kernels import Kernel
from kvintro.queries.translate import Input, Translator
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


def test_walks_are_those_of_crash(core: Core, kernel: Kernel) -> None:
    vmlinux = CACHE / "dbg" / core.truth("release").strip() / "vmlinux"
    if not vmlinux.exists():
        pytest.skip(f"there is no {vmlinux.name} of this kernel in the lab's cache")
    if not core.meta["release"].startswith(("5.10.", "6.1.", "6.12.")):
        pytest.skip("crash 9.0.2 does not read this kernel: it ends while it starts")
    if not core.meta["kaslr"] or not core.meta["pti"] or core.meta["efi"]:
        pytest.skip("one core of each kernel and number of levels is enough: crash takes its time")
    chosen = random.Random(5)
    ranges = [(start, end) for start, end, key in kernel.kernel_ranges if key & PRESENT]
    holes = [(start, end) for start, end, key in kernel.kernel_ranges if not key & PRESENT]
    addresses = [chosen.randint(*pair) for pair in ranges]
    addresses += [chosen.randint(*pair) for pair in chosen.sample(holes, min(60, len(holes)))]
    text = _crash(vmlinux, core.path, [f"vtop {address:x}" for address in addresses])
    answers = _answers(text)
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
