# SPDX-License-Identifier: LGPL-2.1-or-later
"""Missing, zeroed or overwritten page tables of the image, the direct map and the memory map.

The kernel's data can still be read, and is unchanged. Facts that only the tables contain are unknown.
"""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any, Dict, NamedTuple, Sequence, Tuple

import pytest

from kvintro.delivery import exit_code
from kvintro.errors import NotInDump
from kvintro.kernels import Kernel
from kvintro.model import Asked, Report
from kvintro.opening import open_kernel
from kvintro.queries.translate import Input, Translator
from kvintro.render import render
from kvintro.reports.check import check
from kvintro.reports.info import info
from kvintro.reports.layout import layout
from kvintro.reports.pages import pages_report
from kvintro.reports.show import Selection, show
from kvintro.source import Request
from tests.conftest import Core
from tests.cores.showing import needs
from tests.memory_files import dumped_ranges
from tests.remade import PAGE, Remade

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

_FORMS = {"qemu": Remade.as_qemu, "raw": Remade.as_raw, "kdump": Remade.as_kdump, "vmcore": Remade.as_vmcore}


class Case(NamedTuple):
    """A broken table: its window and level (0: the root), the kind of damage, and the format of the dump."""

    window: str
    level: int
    how: str
    form: str


CASES = [
    Case("kernel_image", 2, "zero", "qemu"),
    Case("kernel_image", 3, "gone", "qemu"),
    Case("kernel_image", 2, "junk", "kdump"),
    Case("kernel_image", 2, "gone", "vmcore"),
    Case("kernel_image", 0, "gone", "qemu"),
    Case("kernel_image", 3, "zero", "kdump"),
    Case("kernel_image", 2, "zero", "raw"),
    Case("direct_map", 2, "zero", "qemu"),
    Case("direct_map", 3, "text", "kdump"),
    Case("direct_map", 2, "self", "qemu"),
    Case("direct_map", 0, "entry", "qemu"),
    Case("vmemmap", 2, "zero", "kdump"),
    Case("vmemmap", 2, "self", "qemu"),
    Case("vmemmap", 0, "entry", "vmcore"),
]


@pytest.fixture(autouse=True)
def _places(kernel: Kernel) -> None:
    """Variables that locate the direct map and the memory map."""
    needs(kernel, "page_offset_base", "vmemmap_base", "max_pfn")


def address_in(kernel: Kernel, window: str) -> int:
    """An address that the window maps."""
    if window == "kernel_image":
        return kernel.symbol("__start_BTF")
    if window == "direct_map":
        return kernel.linear_offset.value + (32 << 20)
    return kernel.value("vmemmap_base").value


def break_table(remade: Remade, case: Case) -> Tuple[int, int]:
    """Break the table; return its physical address and level."""
    kernel = remade.kernel
    level = case.level or kernel.levels.value
    steps = kernel.walk(address_in(kernel, case.window)).steps
    step = next(step for step in steps if step.level == level)
    table = step.entry_address & -PAGE
    content = {
        "zero": bytes(PAGE),
        "junk": random.Random(1).randbytes(PAGE),
        "text": (b"the quick brown fox jumps over the lazy dog; " * 99)[:PAGE],
        "self": struct.pack("<Q", table | 0x63) * 512,
    }
    if case.how == "gone":
        remade.leave_out(table)
    elif case.how == "entry":
        remade.write(step.entry_address, bytes(8))
    else:
        remade.write(table, content[case.how])
    return table, level


def by_key(report: Report, by: str = "key") -> Dict[str, Any]:
    return {getattr(row, by): row for row in report.tables[0].rows if getattr(row, by) != "hole"}


def modules_of(kernel: Kernel) -> Sequence[Any]:
    report = show(kernel, "modules", Asked(), Selection())
    return next(table.rows for table in report.tables if table.key == "modules")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_data_is_read_and_the_rest_is_not_known(
    core: Core, kernel: Kernel, tmp_path: Path, case: Case
) -> None:
    if case.form == "kdump" and not (core.directory / "core.kdump").exists():
        pytest.skip("this core has no kdump")
    remade = Remade(core, kernel)
    _, level = break_table(remade, case)
    broken = open_kernel(Request(core=str(_FORMS[case.form](remade, tmp_path / "vmcore"))))
    assert broken.source.types == "BTF"
    said = info(broken)
    assert exit_code(said) == 0
    assert any("page table at physical" in note for note in said.notes)
    if case.window != "kernel_image" or level == 2:  # the level above also has the tables of modules
        assert modules_of(broken) == modules_of(kernel)

    report = layout(broken)
    assert exit_code(report) == 4
    before = by_key(layout(kernel))
    for key, row in by_key(report).items():
        if case.level == 0 and key == "ldt_remap":
            continue  # it exists under page-table isolation, which the root shows
        assert (row.start, row.end, row.state, row.slide) == (
            before[key].start,
            before[key].end,
            before[key].state,
            before[key].slide,
        )
        if key == case.window:
            # Memory above a gap has its own tables.
            assert row.mapped is None or (row.at_least and row.mapped < before[key].mapped)
            assert row.unreadable > 0
            assert "page tables of" in row.reason
        elif level == 2 and case.how != "self":
            assert row.mapped == before[key].mapped, key
    lost = by_key(report)[case.window].mapped is None
    assert ("not known" if lost else "≥") in render(report, "text")
    assert json.loads(render(report, "json"))["partial"]

    states = {row.key: row.state for row in check(broken).tables[1].rows}
    assert states["tables"] == ("unknown" if case.how == "gone" else "failed")
    # Processes have a copy of the root's entries, so the reported difference is true.
    assert {key for key, state in states.items() if state == "failed"} <= {"tables", "process_roots"}

    answer = Translator(broken).translate(Input("", address_in(kernel, case.window), "virtual"))
    if case.how != "self":  # which maps it to itself
        assert answer.state in ("unmapped", "not-in-dump")
        assert answer.physical is None


def test_what_usable_tables_do_not_map_is_not_read(core: Core, kernel: Kernel, tmp_path: Path) -> None:
    """If a table of the image is broken, pages that memfd_secret took out of the direct map stay unmapped."""
    match = re.search(r"^(\d+) \S+ secret ([0-9a-f]+) [0-9a-f]+ ", core.truth("workload"), re.M)
    if match is None or not int(match[2], 16):
        pytest.skip(f"{core.name} was taken without memfd_secret")
    entry = re.search(rf"^{match[1]} {match[2]} (\w+)$", core.truth("pagemap"), re.M)
    assert entry is not None
    physical = (int(entry[1], 16) & (1 << 55) - 1) << 12
    remade = Remade(core, kernel)
    break_table(remade, Case("kernel_image", 2, "zero", "qemu"))
    broken = open_kernel(Request(core=str(remade.as_qemu(tmp_path / "vmcore"))))
    base = broken.linear_offset
    assert base.provenance == "page_offset_base (by phys_base)"
    assert base.value == kernel.linear_offset.value
    assert broken.read_physical(physical, 8)
    with pytest.raises(NotInDump):
        broken.read(base.value + physical, 8)


def test_a_table_of_4k_pages_alone(core: Core, kernel: Kernel, tmp_path: Path) -> None:
    """Memory below one broken table of the direct map is read by arithmetic."""
    base = kernel.linear_offset.value
    ram = dumped_ranges(core.path)
    tables = (
        (at, kernel.walk(at).steps[-1].entry_address & -PAGE)
        for at in range(base + (16 << 20), base + (64 << 20), 2 << 20)
        if kernel.walk(at).page_size == PAGE
        and any(start <= at - base and at - base + 8192 <= end for start, end in ram)
    )
    found = next(tables, None)
    if found is None:
        pytest.skip(f"{core.name} maps all of it by large pages")
    at, table = found
    for how in ("zero", "gone"):
        remade = Remade(core, kernel)
        remade.leave_out(table) if how == "gone" else remade.write(table, bytes(PAGE))
        broken = open_kernel(Request(core=str(remade.as_qemu(tmp_path / "vmcore"))))
        (found_broken,) = broken.source.broken_tables
        assert (found_broken.start, found_broken.end) == (at, at + (2 << 20) - 1)
        assert broken.read(at, 8192) == kernel.read_physical(at - base, 8192)
        assert broken.walk(at).physical is None


#: Bytes that overwrite the memory map.
_CONTENT = {
    "zeros": bytes(PAGE),
    "ones": b"\xff" * PAGE,
    "noise": random.Random(5).randbytes(PAGE),
    "text": (b"the quick brown fox jumps over the lazy dog; " * 99)[:PAGE],
}


@pytest.mark.parametrize("content", _CONTENT)
@pytest.mark.parametrize("part", ["all", "upper half"])
def test_struct_pages_that_were_overwritten(
    core: Core, kernel: Kernel, tmp_path: Path, content: str, part: str
) -> None:
    """The tables are intact, but not the memory that they map. The zones contain the number of free pages."""
    made = Remade(core, kernel)
    end = kernel.prog["max_pfn"].value_()
    first = 0 if part == "all" else end // 2
    base = kernel.value("vmemmap_base").value
    for frame in range(first, end, PAGE // 64):
        physical = kernel.walk(base + frame * 64).physical
        if physical is not None and made.has(physical & -PAGE):
            made.write(physical & -PAGE, _CONTENT[content])
    damaged = open_kernel(Request(core=str(made.as_qemu(tmp_path / "dump"))))
    report = pages_report(damaged)
    said = [text for text in report.notes if "struct pages were overwritten" in text]
    assert len(said) == 1
    assert exit_code(report) == 4
    # The struct pages of the intact dump give the number of pages on the kernel's free lists.
    whole = pages_report(kernel)
    assert f"the zones count {whole.extra['by_type']['free']} free pages" in said[0]
    assert not [text for text in whole.notes if "overwritten" in text]
    (tmp_path / "dump").unlink()


def test_modules_that_are_listed_are_mapped(core: Core, kernel: Kernel, tmp_path: Path) -> None:
    """If the table above all of them is zeroed, "nothing" would be a false claim."""
    listed = modules_of(kernel)
    if not listed:
        pytest.skip("this kernel has no modules loaded")
    assert not [note for note in layout(kernel).notes if "lists a module" in note]
    made = Remade(core, kernel)
    step = next(step for step in kernel.walk(listed[0].address).steps if step.level == 2)
    made.write(step.entry_address & -PAGE, bytes(PAGE))
    report = layout(open_kernel(Request(core=str(made.as_qemu(tmp_path / "dump")))))
    assert [note for note in report.notes if note.startswith("modules: ") and "lists a module" in note]
    assert exit_code(report) == 4
    (tmp_path / "dump").unlink()
