# SPDX-License-Identifier: LGPL-2.1-or-later
"""Aliases and identities against other sources: the kernel's own lists, the emulator's MMU."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Dict, List, Set

import pytest

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.queries.aliases import aliases
from kvintro.reports.aliases import alias_report
from kvintro.reports.identify import identify
from kvintro.reports.layout import layout
from tests.conftest import Core
from tests.cores.showing import needs
from tests.cores.test_layout_truth import has_alias

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)


def test_all_that_the_emulator_translates_to_a_page_are_its_aliases(core: Core, kernel: Kernel) -> None:
    by_page: Dict[int, Set[int]] = defaultdict(set)
    for virtual, physical in json.loads(core.truth("gva2gpa.json")).items():
        if str(physical).startswith("0x"):
            by_page[int(physical, 16)].add(int(virtual, 16))
    chosen = list(by_page.items())[:: max(1, len(by_page) // 40)]
    # Pages with several aliases are the most useful.
    chosen += [item for item in by_page.items() if len(item[1]) > 1][:20]
    for physical, virtuals in chosen:
        found = aliases(kernel, physical)
        assert found.complete
        known: Set[int] = set()
        for alias in found.found:
            if alias.root == kernel.facts.root_name:
                for number in range(min(alias.count, 1 << 12)):
                    known.add(alias.virtual + number * alias.page_size)
            assert kernel.walk(alias.virtual).physical == physical or alias.root != kernel.facts.root_name
        huge = any(alias.count > 1 << 12 for alias in found.found)
        assert virtuals <= known or huge, hex(physical)


def test_the_image_has_two_addresses(core: Core, kernel: Kernel) -> None:
    needs(kernel, "_end")
    try:
        kernel.symbol("init_task")
    except Unavailable as error:
        pytest.skip(error.what)
    report = alias_report(kernel, "init_task")
    regions = [row.region for row in report.tables[0].rows]
    both = has_alias(core, kernel, kernel.symbol("init_task"))
    assert sorted(regions) == (["direct_map", "kernel_image"] if both else ["kernel_image"])
    (image,) = (row for row in report.tables[0].rows if row.region == "kernel_image")
    assert image.symbol == "init_task"
    assert not report.negative


def test_the_idt_has_three(kernel: Kernel) -> None:
    """It is aliased read-only at the start of cpu_entry_area."""
    if kernel.arch.name != "x86-64":
        pytest.skip("only x86-64 has an IDT")
    report = alias_report(kernel, "fffffe0000000000")
    regions = {row.region for row in report.tables[0].rows}
    assert {"cpu_entry_area", "direct_map"} <= regions
    for row in report.tables[0].rows:
        if row.region == "cpu_entry_area":
            assert row.effective == ("ro", "NX")


def kinds(kernel: Kernel, text: str) -> List[str]:
    (row,) = identify(kernel, [text]).tables[0].rows
    return [identity.kind for identity in row.identities]


def texts(kernel: Kernel, text: str) -> List[str]:
    (row,) = identify(kernel, [text]).tables[0].rows
    return [identity.text for identity in row.identities]


@pytest.fixture
def typed(kernel: Kernel) -> Kernel:
    """The kernel; skips the test if there are no types."""
    if kernel.source.types == "none" or kernel.source.symbols == "none":
        pytest.skip("no types for this kernel")
    return kernel


def test_init_task(typed: Kernel) -> None:
    needs(typed, "__per_cpu_offset")
    assert kinds(typed, "init_task+0x10")[:2] == ["task", "symbol"]
    assert "swapper" in texts(typed, "init_task+0x10")[0]


def test_per_cpu_variables(typed: Kernel) -> None:
    needs(typed, "runqueues")
    found = texts(typed, "runqueues+0x8")
    assert found[0] == "per-CPU variable: runqueues+0x8 of CPU 0"


def test_struct_pages(core: Core, typed: Kernel) -> None:
    from kvintro.regions.vmemmap import REGION

    base, size, _ = REGION.pages(typed)
    pfn = (core.ram_base >> typed.page_shift) + 0x100
    (row,) = identify(typed, [f"{base + pfn * size + 8:x}"]).tables[0].rows
    assert row.identities[0].kind == "struct_page"
    assert row.identities[0].details["pfn"] == pfn


def test_modules(core: Core, typed: Kernel) -> None:
    """/proc/modules: name size ... address, where the address is the start of the text."""
    checked = 0
    for line in core.truth("modules").splitlines():
        match = re.match(r"(\S+) .* 0x([0-9a-f]{16})", line)
        if match is None:
            continue
        found = texts(typed, match[2])
        assert any(text.startswith(f"module {match[1]}: ") for text in found), (line, found)
        checked += 1
    assert checked


def test_sections_of_modules(core: Core, typed: Kernel) -> None:
    """/sys/module/*/sections: the start of each section that is still in memory."""
    lines = [line.split() for line in core.truth("module-sections").splitlines()]
    # kernel/module/main.c frees these after initialisation; other data may lie there now.
    lines = [line for line in lines if not line[1].startswith((".init", ".symtab", ".strtab"))]
    starts = [start for _, _, start in lines]
    checked = 0
    for module, section, start in lines[:: max(len(lines) // 40, 1)]:
        if starts.count(start) > 1 or not any(text.startswith("module ") for text in texts(typed, start)):
            continue
        found = [text for text in texts(typed, start) if "section" in text]
        assert found == [f"module {module}: section {section} +0x0"]
        checked += 1
    assert checked > 5


def test_vmalloc_areas(core: Core, typed: Kernel) -> None:
    """/proc/vmallocinfo: 0xS-0xE size caller+0x..."""
    checked = 0
    for line in core.truth("vmallocinfo").splitlines():
        match = re.match(r"0x([0-9a-f]{16})-0x([0-9a-f]{16})\s+\d+ (\S+?)(?:\+0x\S+)? ", line)
        if match is None or match[3] == "unpurged" or "vm_map_ram" in line:
            continue
        found = [text for text in texts(typed, match[1]) if text.startswith("vmap: ")]
        if not found:
            continue  # freed between the listing and the dump; the other lines are enough
        assert f"0x{match[1]}-0x{match[2]}" in found[0]
        if "+0x" in line.split()[2]:
            assert match[3] in found[0]
        checked += 1
        if checked == 30:
            break
    assert checked > 5


def test_stacks_of_tasks(core: Core, typed: Kernel) -> None:
    needs(typed, "__cpu_online_mask")
    from drgn.helpers.linux.pid import find_task

    task = find_task(typed.prog, 1)
    stack = task.stack.value_()
    found = texts(typed, f"{stack + 0x1000:x}")
    (comm,) = re.findall(r"^1 0 (.*)$", core.truth("proc-list"), re.M)
    assert found[0] == f"task stack: 1 ({comm}) +0x1000"
    if "vmemmap" not in typed.prog:
        pytest.skip("drgn does not find the memory map of this kernel, and without it no slabs")
    assert kinds(typed, f"{task.value_():x}")[:2] == ["task", "slab_object"]


def test_fixmap_slots(core: Core, typed: Kernel) -> None:
    name, top = "FIX_IO_APIC_BASE_0", 0xFFFF_FFFF_FF7F_F000
    if core.architecture == "arm64":
        (line,) = re.findall(r"^FIXADDR_TOP (\w+)$", core.truth("layout"), re.M)
        name, top = "FIX_TEXT_POKE0", int(line, 16)
    elif core.architecture == "riscv64":
        (line,) = re.findall(r"^NUMBER\(VMEMMAP_START\)=(\w+)$", core.truth("vmcoreinfo-text"), re.M)
        name, top = "FIX_TEXT_POKE0", int(line, 16) - (16 << 20)
    slot = int(typed.prog.constant(name))
    address = top - (slot << typed.page_shift)
    assert texts(typed, f"{address + 0x10:x}")[0] == f"fixmap slot {slot}: {name}"


def test_freed_init_is_not_taken_for_its_symbol(typed: Kernel) -> None:
    needs(typed, "__init_begin")
    needs(typed, "__init_end")
    (row,) = identify(typed, ["__init_begin+0x10"]).tables[0].rows
    if typed.isolation.value:
        assert (row.state, row.physical) == ("unmapped", None)
    assert "init_section" in [identity.kind for identity in row.identities]


def test_what_is_nowhere(core: Core, kernel: Kernel) -> None:
    nowhere = 0xFEFF_0000_0000_0000
    if core.architecture == "arm64":
        # A signed pointer into a hole: without its signature it is an address.
        rows = layout(kernel).tables[0].rows
        nowhere = next(row.start for row in rows if row.key == "hole" and row.start and row.start >> 63) & ~(
            1 << 56
        )
    report = identify(kernel, ["ffffffffffffffff", f"{nowhere:x}"])
    first, second = report.tables[0].rows
    assert first.state == "unmapped"
    assert [identity.kind for identity in first.identities] == ["error_value", "region"]
    assert second.state in ("non-canonical", "unmapped")
    assert report.negative
