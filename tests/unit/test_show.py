# SPDX-License-Identifier: LGPL-2.1-or-later
"""Selection of rows, and lines as in the kernel's own files."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, List, Optional, Sequence

import drgn
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.arch.x86_64.form import X86Form
from kvintro.errors import UsageError
from kvintro.model import Address, AddressRange, Column, Report, Size, Table
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_READ,
    EFFECTIVE_USER,
    EFFECTIVE_USER_EXEC,
    EFFECTIVE_WRITE,
    LEVEL_SHIFT,
    MAPPED,
    UNREADABLE,
    Ranges,
)
from kvintro.readers.mapped import View, caching_text, rights_text
from kvintro.regions.kasan_shadow import _meanings
from kvintro.regions.user import VmaRow
from kvintro.regions.vmalloc import AreaRow
from kvintro.render import render
from kvintro.render.inert import inert
from kvintro.render.show import area_line
from kvintro.render.user import maps_line
from kvintro.reports.show import Selection, parse_pattern, parse_range, select

FORM = X86Form(4, (1 << 52) - 1)


@dataclass(frozen=True)
class Row:
    start: Optional[Address]
    end: Optional[Address]
    size: Size
    name: str


def rows(*sizes: int) -> List[Row]:
    return [
        Row(Address(i * 100), Address(i * 100 + 99), Size(size), f"row{i}") for i, size in enumerate(sizes)
    ]


def table(*sizes: int) -> Table:
    return Table("things", (Column("start", "start"), Column("size", "size", "right")), rows(*sizes))


def names(tables: Any) -> List[str]:
    return [row.name for row in tables[0].rows]


def test_top_is_the_largest_unless_sorted() -> None:
    tables = (table(5, 9, 1, 7),)
    assert names(select(tables, Selection(top=2))) == ["row1", "row3"]
    assert names(select(tables, Selection(top=2, sort="name"))) == ["row0", "row1"]
    assert names(select(tables, Selection(sort="size", reverse=True))) == ["row2", "row0", "row3", "row1"]
    assert names(select(tables, Selection(sort="start"))) == ["row0", "row1", "row2", "row3"]
    assert names(select(tables, Selection(top=0))) == []


def test_match_and_range() -> None:
    tables = (table(1, 1, 1, 1),)
    assert names(select(tables, Selection(match=parse_pattern("row[12]$")))) == ["row1", "row2"]
    # An address matches in the form in which it is shown.
    assert names(select(tables, Selection(match=parse_pattern("^00000000000000c8")))) == ["row2"]
    assert names(select(tables, Selection(within=parse_range("63-64")))) == ["row0"]
    assert names(select(tables, Selection(within=parse_range("64-c9")))) == ["row1", "row2"]
    nowhere = dataclasses.replace(tables[0], rows=[Row(None, None, Size(1), "lost")])
    assert names(select((nowhere,), Selection(within=parse_range("0-1000")))) == []


def test_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="no table"):
        select((table(1),), Selection(table="other"))
    with pytest.raises(UsageError, match="has a column"):
        select((table(1),), Selection(sort="weight"))
    for text in ("1-2-3", "x-y", "5", "20-10", "-"):
        with pytest.raises(UsageError, match="not a range"):
            parse_range(text)
    with pytest.raises(UsageError, match="regular expression"):
        parse_pattern("(")


def test_the_end_of_the_last_page() -> None:
    last = AddressRange(0xFFFF_FFFF_FFFF_F000, (1 << 64) - 1)
    assert parse_range("fffffffffffff000-0") == last
    assert parse_range("0xfffffffffffff000-0xffffffffffffffff") == last


def filled(row: Any, names: Sequence[str], values: Sequence[Any], **others: Any) -> Any:
    """A row with some fields; the others are None."""
    empty = dict.fromkeys(field.name for field in dataclasses.fields(row))
    return row(**{**empty, **others, **dict(zip(names, values))})


def area(*values: Any) -> AreaRow:
    """An area with the values in its line."""
    names = ("start", "end", "size", "kind", "caller", "pages", "physical", "flags", "nodes")
    found: AreaRow = filled(AreaRow, names, values, pages=0, flags=(), nodes={})
    return found


# Lines that kernels printed.
LINES = [
    (
        area(Address(0xFFFFD0594000D000), Address(0xFFFFD0594000EFFF), Size(8192), "vmalloc",
             "gen_pool_add_owner+0x3e/0xc0", 1, None, ("vmalloc",), {"0": 1}),
        "0xffffd0594000d000-0xffffd0594000f000    8192 gen_pool_add_owner+0x3e/0xc0 pages=1 vmalloc N0=1",
    ),
    (
        area(Address(0xFFFFD05940005000), Address(0xFFFFD05940006FFF), Size(8192), "ioremap",
             "acpi_os_map_iomem+0x1a9/0x1e0", 0, Address(0xFFE1000), ("ioremap",)),
        "0xffffd05940005000-0xffffd05940007000    8192 acpi_os_map_iomem+0x1a9/0x1e0 "
        "phys=0x000000000ffe1000 ioremap",
    ),
    (
        area(Address(0xFFFFD05940188000), Address(0xFFFFD0594018CFFF), Size(20480), "unpurged"),
        "0xffffd05940188000-0xffffd0594018d000   20480 unpurged vm_area",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "line"), LINES)
def test_lines_of_vmallocinfo(row: AreaRow, line: str) -> None:
    assert area_line(row) == line


def vma(*values: Any) -> VmaRow:
    """A memory area of a process with the values in its line."""
    names = ("start", "end", "permissions", "offset", "device", "inode", "name")
    found: VmaRow = filled(VmaRow, names, values)
    return found


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            vma(Address(0x47B000), Address(0x4A2FFF), "r--p", Address(0x7B000), "00:02", 10, "/workload"),
            "0047b000-004a3000 r--p 0007b000 00:02 10                                 /workload",
        ),
        (
            vma(Address(0x7FF705200000), Address(0x7FF7053FFFFF), "rw-p", Address(0), "00:00", 0, ""),
            "7ff705200000-7ff705400000 rw-p 00000000 00:00 0 ",
        ),
    ],
)
def test_lines_of_maps(row: VmaRow, line: str) -> None:
    assert maps_line(row) == line


def test_names_from_a_kernel_are_inert() -> None:
    row = area(
        Address(0), Address(4095), Size(4096), "vmalloc", "evil\x1b[31m\n0xffff", 1, None, ("vmalloc",)
    )
    line = area_line(inert(row))
    assert "\x1b" not in line and "\n" not in line
    memory_area = vma(Address(0), Address(4095), "r--p", Address(0), "00:00", 0, "/a\x1b]0;title\x07")
    line = maps_line(inert(memory_area))
    assert "\x1b" not in line and "\x07" not in line


def test_a_region_without_contents_says_why() -> None:
    from kvintro.reports.show import RegionHead

    head = RegionHead("toy", "toy", "absent", None, None, None, None, "only a test has \x1bit", "")
    report = Report("show", None, (), extra={"region": head, "totals": {}}, negative=True)
    text = render(report, "text")
    assert "toy   not on this kernel" in text and "only a test has \\x1bit" in text


# Page tables of a range

PAGE = 4096
keys = st.sampled_from(
    (
        0,
        UNREADABLE | 1 << LEVEL_SHIFT,
        MAPPED | 1 << LEVEL_SHIFT | EFFECTIVE_READ | EFFECTIVE_WRITE,
        MAPPED | 1 << LEVEL_SHIFT | EFFECTIVE_READ | EFFECTIVE_USER | EFFECTIVE_EXEC,
        MAPPED | 1 << LEVEL_SHIFT | EFFECTIVE_READ | 0x18,
    )
)


@given(st.lists(keys, min_size=1, max_size=40), st.integers(0, 39), st.integers(1, 40))
def test_stretches_against_page_by_page(pages: List[int], first: int, count: int) -> None:
    starts = [i for i, key in enumerate(pages) if i == 0 or pages[i - 1] != key]
    ranges = Ranges(
        numpy.array([i * PAGE for i in starts], numpy.uint64),
        numpy.array([pages[i] for i in starts], numpy.uint64),
        len(pages) * PAGE - 1,
    )
    found = View(ranges, FORM).stretch(first * PAGE, (first + count) * PAGE - 1)
    met = pages[first : first + count]
    mapped = [key for key in met if key & MAPPED]
    assert found.mapped == len(mapped) * PAGE
    assert found.unreadable == sum(bool(key & UNREADABLE) for key in met) * PAGE
    assert found.pages == ({"4K": len(mapped)} if mapped else {})
    assert set(found.rights) == {rights_text(key) for key in mapped}
    assert set(found.caching) == {caching_text(FORM, key) for key in mapped}


def test_rights_and_caching() -> None:
    assert rights_text(EFFECTIVE_READ | EFFECTIVE_WRITE) == "rw-"
    assert rights_text(EFFECTIVE_READ | EFFECTIVE_EXEC) == "r-x"
    assert rights_text(EFFECTIVE_READ | EFFECTIVE_WRITE | EFFECTIVE_EXEC | EFFECTIVE_USER) == "rwxu"
    # Memory that user mode may execute and not read.
    assert rights_text(EFFECTIVE_USER_EXEC) == "--x"
    small, large = 1 << LEVEL_SHIFT, 2 << LEVEL_SHIFT
    assert caching_text(FORM, small) == "WB"
    assert caching_text(FORM, small | 0x18) == "UC"
    assert caching_text(FORM, small | 0x80) == "WB"  # PAT index 4
    assert caching_text(FORM, large | 0x80) == "WB"  # PSE, not PAT
    assert caching_text(FORM, large | 0x1000 | 0x08) == "WP"  # PAT index 5


def test_patterns_see_all_of_a_row() -> None:
    row = Row(Address(0xABC), Address(0xDEF), Size(77), "name")
    from kvintro.reports.show import row_text

    assert re.search("0000000000000abc 0000000000000def 77 name", row_text(row))


@pytest.mark.parametrize(
    "members, byte", [(["quarantine_link"], 0xFA), (["quarantine_link", "free_track"], 0xF9)]
)
def test_redzones_of_globals(members: List[str], byte: int) -> None:
    """KASAN_GLOBAL_REDZONE of mm/kasan/kasan.h, in 5.4 and since 5.8."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    word = prog.int_type("unsigned long", 8, False)
    fields = [drgn.TypeMember(word, name, 64 * i) for i, name in enumerate(members)]
    meta = prog.struct_type("kasan_free_meta", 8 * len(fields), fields)
    kernel: Any = SimpleNamespace(
        prog=SimpleNamespace(type={"struct kasan_free_meta": meta}.__getitem__),
        source=SimpleNamespace(types="DWARF"),
    )
    meanings = _meanings(kernel)
    assert [value for value, text in meanings.items() if text == "redzone of a global variable"] == [byte]
