# SPDX-License-Identifier: LGPL-2.1-or-later
"""`show` of cpu_entry_area, espfix, ldt_remap, fixmap and vsyscall against the kernel's own page-table dump,
the processors' registers and what the workload installed."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Tuple

import pytest

from kvintro.kernels import Kernel
from kvintro.model import Asked
from kvintro.render import render
from kvintro.reports.identify import identify
from kvintro.reports.show import Selection, show
from tests.conftest import Core
from tests.cores.showing import (
    clean,
    document,
    fresh,
    merged,
    needs,
    number,
    overlay,
    processors,
    ptdump,
    registers,
    values,
)

PAGE = 4096


@pytest.fixture(scope="module")
def areas(kernel: Kernel) -> Any:
    return document(kernel, "cpu_entry_area")


def test_the_registers_point_into_it(core: Core, areas: Any) -> None:
    """Against QEMU's values of GDTR, TR and IDTR of each processor."""
    members = {(row["cpu"], row["member"]): number(row["start"]) for row in areas["members"]}
    cpus = registers(core)
    assert len(areas["cpus"]) == processors(core)
    for cpu, held in cpus.items():
        assert members[cpu, "gdt"] == held["GDT"]
        assert members[None, "IDT"] == held["IDT"]
        assert members[cpu, "tss"] == held["TR"]


def test_identify_knows_what_the_registers_point_to(core: Core, kernel: Kernel) -> None:
    """Also the stacks for which the TSS has slots, in the order of the processor's manual: IST1 to IST7."""
    stacks = {
        1: {"DF_stack"}, 2: {"NMI_stack"}, 3: {"DB_stack", "DB1_stack"}, 4: {"MCE_stack"}, 5: {"VC_stack"}
    }  # fmt: skip
    for cpu, held in registers(core).items():
        asked: Dict[int, Any] = {held["GDT"] + 8: (cpu, "gdt", 8), held["IDT"] + 16: (None, "IDT", 16)}
        asked[held["TR"] + 4] = (cpu, "tss", 4)
        for slot in stacks:
            top = int.from_bytes(kernel.read(held["TR"] + 0x24 + 8 * (slot - 1), 8), "little")
            if top:
                asked[top - 8] = (cpu, slot, None)
        report = identify(kernel, [f"{address:x}" for address in asked])
        for row, (whose, member, offset) in zip(report.tables[0].rows, asked.values()):
            (found,) = (i for i in row.identities if i.kind == "cpu_entry_area")
            assert found.details["cpu"] == whose
            if isinstance(member, int):
                assert found.details["member"] in stacks[member]
                assert found.details["offset"] == (found.size or 0) - 8
            else:
                assert (found.details["member"], found.details["offset"]) == (member, offset)
            who = "all CPUs" if whose is None else f"CPU {whose}"
            assert found.text.startswith(f"cpu_entry_area of {who}: {found.details['member']} +0x")


def test_members_agree_with_the_page_tables(areas: Any) -> None:
    clean(areas)
    assert areas["notes"] == []
    assert sum(row["mapped"] for row in areas["members"]) == areas["totals"]["mapped"]
    for row in areas["members"]:
        if row["guard"]:
            assert row["mapped"] == 0
    stacks = {row["member"] for row in areas["members"] if row["mapped"]}
    assert stacks >= {"gdt", "entry_stack_page", "tss", "DF_stack", "NMI_stack", "DB_stack", "MCE_stack"}


def test_members_against_ptdump(core: Core, areas: Any) -> None:
    ours = sorted(
        (number(row["start"]), number(row["end"]) + 1, row["rights"][0])
        for row in areas["members"]
        if row["mapped"]
    )
    theirs = [(line.start, line.end, line.rights) for line in ptdump(core, "CPU entry Area")]
    assert merged(iter(ours)) == merged(iter(theirs))


def test_espfix_against_ptdump(core: Core, kernel: Kernel) -> None:
    needs(kernel, "espfix_stack")
    found = clean(document(kernel, "espfix"))
    assert found["notes"] == []
    lines = ptdump(core, "ESPfix Area")
    pages = {number(row["start"]) // PAGE * PAGE for row in found["stacks"]}
    # A page for up to 64 CPUs, and the kernel prints 16 lines at most.
    assert lines[0].start in {page & ~0xFFFF_0000 | lines[0].start & 0xFFFF_0000 for page in pages}
    assert {line.rights for line in lines} == {"r--"}
    skipped = re.search(r"^\.\.\. (\d+) entries skipped", core.truth("ptdump/kernel"), re.M)
    assert skipped
    for row in found["stacks"]:
        assert row["clones"] == 65536
        # By the formula in espfix_64.c, from the variables that the guest read.
        variables = values(core)
        page_random, slot_random = (
            int.from_bytes(variables[n], "little") for n in ("page_random", "slot_random")
        )
        address = (page_random << 12) + (row["cpu"] + slot_random) % 64 * 64
        spread = (address & 0xFFFF) | (address & ~0xFFFF) << 16
        assert number(row["start"]) == 0xFFFF_FF00_0000_0000 + spread


def test_fixmap_against_ptdump(core: Core, kernel: Kernel) -> None:
    found = document(kernel, "fixmap")
    ours = sorted((number(row["start"]), number(row["end"]) + 1, row["rights"][0]) for row in found["mapped"])
    theirs = [(line.start, line.end, line.rights) for line in ptdump(core, "Fixmap Area")]
    assert merged(iter(ours)) == merged(iter(theirs))


def test_fixmap_slots(core: Core, kernel: Kernel) -> None:
    needs(kernel, "iomem_resource")
    found = document(kernel, "fixmap")
    slots = {row["name"]: row for row in found["slots"]}
    assert number(slots["VSYSCALL_PAGE"]["start"]) == 0xFFFF_FFFF_FF60_0000
    # The local APIC's registers are at the architecture's address, and an I/O APIC is at that of iomem.
    assert number(slots["FIX_APIC_BASE"]["physical"]) == 0xFEE0_0000
    io_apic = re.search(r"^ *(\w+)-\w+ : IOAPIC 0", core.truth("iomem"), re.M)
    assert io_apic and number(slots["FIX_IO_APIC_BASE_0"]["physical"]) == int(io_apic[1], 16)
    assert slots["FIX_IO_APIC_BASE_0"]["behind"] == "IOAPIC 0"
    # Device registers are not cached.
    assert slots["FIX_APIC_BASE"]["caching"] == ["UC"]
    assert [row["slot"] for row in found["slots"]] == sorted(row["slot"] for row in found["slots"])
    for row in found["slots"]:
        assert number(row["start"]) == 0xFFFF_FFFF_FF7F_F000 - row["slot"] * PAGE


def test_vsyscall(core: Core, kernel: Kernel) -> None:
    needs(kernel, "vsyscall_mode")
    mode = int.from_bytes(values(core)["vsyscall_mode"], "little")
    report = show(kernel, "vsyscall", Asked(), Selection())
    found = json.loads(render(report, "json"))
    assert found["region"]["state"] == ("absent" if mode == 2 else "present")
    if mode == 2:
        assert report.negative
        return
    (row,) = found["page"]
    assert row["mode"] == {0: "emulate", 1: "xonly"}[mode]
    maps = next((core.truth_directory / "proc").glob("*/maps")).read_text()
    line = next(line for line in maps.splitlines() if line.endswith("[vsyscall]"))
    assert line.split()[1] == row["gate"]
    assert row["problem"] is None


# LDTs


@pytest.fixture(scope="module")
def ldts(kernel: Kernel) -> Any:
    return document(kernel, "ldt_remap")


def installed(core: Core) -> Dict[int, List[Tuple[int, int, int]]]:
    """(entry, base, limit) that each process of the workload wrote; the last write of an entry counts."""
    found: Dict[int, Dict[int, Tuple[int, int]]] = {}
    for line in core.truth("workload").splitlines():
        match = re.match(r"(\d+) \S+ ldt .* write_ldt entry (\d+) base (\w+) limit (\w+)", line)
        if match:
            entries = found.setdefault(int(match[1]), {})
            entries[int(match[2])] = int(match[3], 16), int(match[4], 16)
    return {pid: [(e, *rest) for e, rest in sorted(entries.items())] for pid, entries in found.items()}


def test_ldts_are_what_the_workload_installed(core: Core, ldts: Any) -> None:
    clean(ldts)
    ours: Dict[int, List[Tuple[int, int, int]]] = {}
    for row in ldts["entries"]:
        ours.setdefault(row["pid"], []).append((row["entry"], number(row["base"]), row["limit"]))
        assert row["limit_unit"] == "bytes" and row["present"] and row["privilege"] == 3
        assert row["kind"] == "32-bit data, writable"
    for pid, entries in installed(core).items():
        # A child has a copy of its parent's table, and may have written to it.
        assert set(entries) <= set(ours[pid])
    written = set(installed(core))
    tables = {row["pid"]: row for row in ldts["tables"]}
    assert written <= set(tables)
    for pid in written:
        row = tables[pid]
        size = -(-row["entries"] * 8 // PAGE) * PAGE
        assert (row["size"], row["mapped"], row["rights"]) == (size, size, ["r--"])
        slot = kernel_slot(number(row["start"]), core.meta["levels"])
        assert slot == row["slot"]
    biggest = max(ldts["tables"], key=lambda row: row["entries"])
    assert biggest["entries"] == 8192 and biggest["mapped"] == 65536


def kernel_slot(address: int, levels: int) -> int:
    """mm.rst: the LDT remap starts at ffff880000000000 or ff10000000000000; slots are 64 KB."""
    base = 0xFFFF_8800_0000_0000 if levels == 4 else 0xFF10_0000_0000_0000
    slot, rest = divmod(address - base, 65536)
    assert rest == 0
    return slot


def test_one_process(core: Core, kernel: Kernel, ldts: Any) -> None:
    pid = min(installed(core))
    found = document(kernel, "ldt_remap", pid=pid)
    assert [row["pid"] for row in found["tables"]] == [pid]


def test_no_ldts_without_isolation(core: Core, kernel: Kernel) -> None:
    if core.meta["pti"]:
        pytest.skip("this kernel isolates page tables")
    report = show(kernel, "ldt_remap", Asked(), Selection())
    assert report.negative and not report.partial
    assert "isolation is off" in (report.extra["region"].reason or "")


# Damage


def test_a_wild_cea_offset(core: Core) -> None:
    kernel = fresh(core)
    if kernel.find_symbol("_cea_offset") is None:
        pytest.skip("areas go by CPU numbers here")
    from kvintro.readers.cpus import per_cpu_address

    overlay(kernel, per_cpu_address(kernel, "_cea_offset", 1), 1 << 60)
    report = show(kernel, "cpu_entry_area", Asked(), Selection())
    assert report.partial
    assert {row.cpu for row in report.tables[0].rows} == {None, 0}


def test_a_wild_ldt(core: Core) -> None:
    kernel = fresh(core)
    if not core.meta["pti"]:
        pytest.skip("nothing is mapped without isolation")
    from kvintro.readers.damage import Damage
    from kvintro.readers.processes import each_mm
    from kvintro.readers.structures import offset_of

    victim = next(p for p in each_mm(kernel, Damage()) if p.comm == "kv-ldt1")
    context = offset_of(kernel, "struct mm_struct", "context") + offset_of(kernel, "mm_context_t", "ldt")
    before = len(show(kernel, "ldt_remap", Asked(), Selection()).tables[0].rows)
    overlay(kernel, victim.mm + context, 0xDEAD_0000_1000)
    report = show(kernel, "ldt_remap", Asked(), Selection())
    assert report.partial
    assert len(report.tables[0].rows) == before - 1
