# SPDX-License-Identifier: LGPL-2.1-or-later
"""Choosing rows, and lines as the kernel's own files have them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, List, Optional

import drgn
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.errors import UsageError
from kvintro.model import Address, AddressRange, Column, Report, Size, Table
from kvintro.paging import EFFECTIVE_NX, EFFECTIVE_RW, EFFECTIVE_USER, LEVEL_SHIFT, MAPPED, UNREADABLE, Ranges
from kvintro.readers.mapped import View, caching_text, rights_text
from kvintro.regions.kasan_shadow import _meanings
from kvintro.render import render
from kvintro.render.inert import inert
from kvintro.render.show import area_line
from kvintro.render.user import maps_line
from kvintro.reports.show import Selection, parse_pattern, parse_range, select


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
    # An address is matched as it is shown.
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
        with pytest.raises(UsageError, match="no range"):
            parse_range(text)
    with pytest.raises(UsageError, match="regular expression"):
        parse_pattern("(")


def test_the_end_of_the_last_page() -> None:
    last = AddressRange(0xFFFF_FFFF_FFFF_F000, (1 << 64) - 1)
    assert parse_range("fffffffffffff000-0") == last
    assert parse_range("0xfffffffffffff000-0xffffffffffffffff") == last


@dataclass(frozen=True)
class Area:
    start: Address
    end: Address
    size: Size
    kind: str
    caller: Optional[str] = None
    pages: int = 0
    physical: Optional[Address] = None
    flags: "tuple[str, ...]" = ()
    nodes: "Any" = dataclasses.field(default_factory=dict)


# Lines that kernels printed.
LINES = [
    (
        Area(Address(0xFFFFD0594000D000), Address(0xFFFFD0594000EFFF), Size(8192), "vmalloc",
             "gen_pool_add_owner+0x3e/0xc0", 1, None, ("vmalloc",), {"0": 1}),
        "0xffffd0594000d000-0xffffd0594000f000    8192 gen_pool_add_owner+0x3e/0xc0 pages=1 vmalloc N0=1",
    ),
    (
        Area(Address(0xFFFFD05940005000), Address(0xFFFFD05940006FFF), Size(8192), "ioremap",
             "acpi_os_map_iomem+0x1a9/0x1e0", 0, Address(0xFFE1000), ("ioremap",)),
        "0xffffd05940005000-0xffffd05940007000    8192 acpi_os_map_iomem+0x1a9/0x1e0 "
        "phys=0x000000000ffe1000 ioremap",
    ),
    (
        Area(Address(0xFFFFD05940188000), Address(0xFFFFD0594018CFFF), Size(20480), "unpurged"),
        "0xffffd05940188000-0xffffd0594018d000   20480 unpurged vm_area",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "line"), LINES)
def test_lines_of_vmallocinfo(row: Area, line: str) -> None:
    assert area_line(row) == line


@dataclass(frozen=True)
class Vma:
    start: Address
    end: Address
    permissions: str
    offset: Address
    device: str
    inode: int
    name: str


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            Vma(Address(0x47B000), Address(0x4A2FFF), "r--p", Address(0x7B000), "00:02", 10, "/workload"),
            "0047b000-004a3000 r--p 0007b000 00:02 10                                 /workload",
        ),
        (
            Vma(Address(0x7FF705200000), Address(0x7FF7053FFFFF), "rw-p", Address(0), "00:00", 0, ""),
            "7ff705200000-7ff705400000 rw-p 00000000 00:00 0 ",
        ),
    ],
)
def test_lines_of_maps(row: Vma, line: str) -> None:
    assert maps_line(row) == line


def test_names_from_a_kernel_are_inert() -> None:
    row = Area(
        Address(0), Address(4095), Size(4096), "vmalloc", "evil\x1b[31m\n0xffff", 1, None, ("vmalloc",)
    )
    line = area_line(inert(row))
    assert "\x1b" not in line and "\n" not in line
    vma = Vma(Address(0), Address(4095), "r--p", Address(0), "00:00", 0, "/a\x1b]0;title\x07")
    line = maps_line(inert(vma))
    assert "\x1b" not in line and "\x07" not in line


def test_a_region_without_contents_says_why() -> None:
    from kvintro.reports.show import RegionHead

    head = RegionHead("toy", "toy", "absent", None, None, None, None, "only a test has \x1bit", "")
    report = Report("show", None, (), extra={"region": head, "totals": {}}, negative=True)
    text = render(report, "text")
    assert "toy   not on this kernel" in text and "only a test has \\x1bit" in text


# What page tables say of a stretch

PAGE = 4096
keys = st.sampled_from(
    (
        0,
        UNREADABLE | 1 << LEVEL_SHIFT,
        MAPPED | 1 << LEVEL_SHIFT | EFFECTIVE_RW | EFFECTIVE_NX,
        MAPPED | 1 << LEVEL_SHIFT | EFFECTIVE_USER,
        MAPPED | 1 << LEVEL_SHIFT | EFFECTIVE_NX | 0x18,
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
    found = View(ranges).stretch(first * PAGE, (first + count) * PAGE - 1)
    met = pages[first : first + count]
    mapped = [key for key in met if key & MAPPED]
    assert found.mapped == len(mapped) * PAGE
    assert found.unreadable == sum(bool(key & UNREADABLE) for key in met) * PAGE
    assert found.pages == ({"4K": len(mapped)} if mapped else {})
    assert set(found.rights) == {rights_text(key) for key in mapped}
    assert set(found.caching) == {caching_text(key) for key in mapped}


def test_rights_and_caching() -> None:
    assert rights_text(EFFECTIVE_RW | EFFECTIVE_NX) == "rw-"
    assert rights_text(0) == "r-x"
    assert rights_text(EFFECTIVE_RW | EFFECTIVE_USER) == "rwxu"
    small, large = 1 << LEVEL_SHIFT, 2 << LEVEL_SHIFT
    assert caching_text(small) == "WB"
    assert caching_text(small | 0x18) == "UC"
    assert caching_text(small | 0x80) == "WB"  # PAT index 4
    assert caching_text(large | 0x80) == "WB"  # PSE, not PAT
    assert caching_text(large | 0x1000 | 0x08) == "WP"  # PAT index 5


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
