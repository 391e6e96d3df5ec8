# SPDX-License-Identifier: LGPL-2.1-or-later
"""The walkers on page tables unlike x86-64's. A form without each idea shows that the checks detect it."""

from __future__ import annotations

import json
import random
import re
import struct
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Tuple, Type

import drgn
import numpy
import pytest

from kvintro import arch, opening
from kvintro.arch.address_space import Window
from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, AddressRange
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_USER,
    EFFECTIVE_USER_EXEC,
    EFFECTIVE_WRITE,
    MAPPED,
    Bulk,
    FrameTree,
    Tree,
    walk,
)
from kvintro.paging.broken import find_broken
from kvintro.paging.bulk import STATES
from kvintro.paging.search import find_frames
from kvintro.queries.aliases import aliases
from kvintro.queries.audit import places, rights
from kvintro.queries.pages.census import Pages
from kvintro.queries.placements import Places, place_regions
from kvintro.queries.translate import Input, Translator
from kvintro.render import render, render_stream
from kvintro.reports.layout import layout
from kvintro.reports.ptdump import ptdump
from kvintro.source import Source
from tests import toy
from tests.toy.facts import IMAGE_PHYSICAL, PLACES, RAM, START, ToyFacts
from tests.toy.form import (
    FOR_USER,
    LARGE,
    NO_EXEC,
    NO_USER_EXEC,
    READ_ONLY,
    TABLE,
    TABLE_NO_USER,
    TABLE_READ_ONLY,
    ToyForm,
    entry_of,
)

FORM = ToyForm(3)
PAGE = 1 << 14
LARGE_PAGE = 1 << 25
KERNEL = (1 << 64) - (1 << 39)
#: Rights by letter: written, user, executed by kernel mode, by user mode.
RIGHTS = (
    (READ_ONLY, EFFECTIVE_WRITE, False),
    (FOR_USER, EFFECTIVE_USER, True),
    (NO_EXEC, EFFECTIVE_EXEC, False),
    (NO_USER_EXEC, EFFECTIVE_USER_EXEC, False),
)


class Memory:
    """Tables written entry by entry, without the form. The root has 64 bytes within a page."""

    def __init__(self) -> None:
        self.data: Dict[int, int] = {}
        self.tables: Dict[Tuple[int, int], int] = {}
        self.next = 0x10_0000
        self.root = self._new(64) + 64

    def _new(self, size: int) -> int:
        address, self.next = self.next, self.next + PAGE
        self.data.update(dict.fromkeys(range(address, address + PAGE, 8), 0))
        return address

    def map(self, address: int, physical: int, flags: int, *, large: bool = False, table: int = 0) -> None:
        """Map a page. Indices are of 3, 11 and 11 bits above 14 bits."""
        offset = address & (1 << 39) - 1
        at = self.root + 8 * (offset >> 36)
        for depth, shift in ((0, 25), (1, 14)):
            if depth == 1 and large:
                break
            where = (depth, offset >> shift + 11)
            if where not in self.tables:
                self.tables[where] = self._new(PAGE)
                self.data[at] = entry_of(self.tables[where], TABLE | (0 if depth else table))
            at = self.tables[where] + 8 * (offset >> shift & 2047)
        self.data[at] = entry_of(physical, flags | (LARGE if large else TABLE))

    def write(self, address: int, content: bytes) -> None:
        """Write memory that is not a table."""
        self.data.update(
            zip(range(address, address + len(content), 8), struct.unpack(f">{len(content) // 8}Q", content))
        )

    def read(self, address: int, size: int) -> bytes:
        """Physical memory."""
        try:
            return b"".join(struct.pack(">Q", self.data[at]) for at in range(address, address + size, 8))
        except KeyError:
            raise NotInDump(address, size, physical=True) from None


def made() -> "Tuple[Memory, List[Tuple[int, int, int, int]]]":
    """Tables of the kernel's half, and (address, size, physical, rights) of what they map."""
    memory = Memory()
    pages: List[Tuple[int, int, int, int]] = []
    chosen = random.Random(13)
    for number in range(60):
        large = number % 4 == 0
        size = LARGE_PAGE if large else PAGE
        address = KERNEL + (number % 8 << 36) + chosen.randrange(1 << 36) // LARGE_PAGE * LARGE_PAGE
        physical = chosen.randrange(1 << 39) // LARGE_PAGE * LARGE_PAGE
        flags = chosen.randrange(16) << 2
        # A table entry of the root can remove rights from everything below.
        table = {1: TABLE_READ_ONLY, 2: TABLE_NO_USER}.get(number % 8, 0)
        if not large:
            address += chosen.randrange(2048) * PAGE
        if any(low - LARGE_PAGE < address < low + LARGE_PAGE for low, *_ in pages):
            continue
        memory.map(address, physical, flags, large=large, table=table)
        rights = sum(right for bit, right, given in RIGHTS if bool(flags & bit) is given)
        if table == TABLE_READ_ONLY:
            rights &= ~EFFECTIVE_WRITE
        if table == TABLE_NO_USER:
            rights &= ~EFFECTIVE_USER
        pages.append((address, size, physical, rights))
    return memory, sorted(pages)


def check_walk(form: ToyForm) -> None:
    """One address step by step."""
    memory, pages = made()
    for address, size, physical, _ in pages:
        found = walk(memory.read, form, memory.root, address + size - 5)
        assert (found.state, found.physical, found.page_size) == ("mapped", physical + size - 5, size)
        assert len(found.steps) == (2 if size == LARGE_PAGE else 3)
    assert walk(memory.read, form, memory.root, 1 << 39).state == "non-canonical"
    assert walk(memory.read, form, memory.root, KERNEL - 1).state == "non-canonical"


def check_bulk(form: ToyForm) -> None:
    """Many addresses at once."""
    memory, pages = made()
    addresses = [address + at for address, size, _, _ in pages for at in (0, size - 1)]
    expected = [physical + at for _, size, physical, _ in pages for at in (0, size - 1)]
    asked = numpy.array([*addresses, KERNEL - 1], numpy.uint64)
    found = Bulk(memory.read, form, memory.root).translate(asked)
    assert found.physical.tolist() == [*expected, 0]
    assert STATES[found.states[-1]] == "non-canonical"
    every = Bulk(memory.read, form, memory.root).walk(asked)
    for row, address in enumerate(addresses):
        steps = walk(memory.read, form, memory.root, address).steps
        assert every.entry_addresses[row].tolist()[: len(steps)] == [step.entry_address for step in steps]
        assert all(memory.data[step.entry_address] == step.value for step in steps)
    assert found.page_shifts.tolist()[:-1] == [size.bit_length() - 1 for _, size, _, _ in pages for _ in "01"]


def check_tree(form: ToyForm) -> None:
    """A whole tree as ranges."""
    memory, pages = made()
    tree = Tree(memory.read, form, memory.root, memory_end=1 << 39)
    every = EFFECTIVE_WRITE | EFFECTIVE_USER | EFFECTIVE_EXEC | EFFECTIVE_USER_EXEC
    found = tree.ranges(form.kernel.start, form.kernel.end).select(MAPPED)
    assert (form.kernel.start, form.user.end) == (KERNEL, (1 << 39) - 1)
    assert [(low, high - low + 1, key & every) for low, high, key in found] == [
        (address, size, rights) for address, size, _, rights in pages
    ]
    assert not (tree.limited or tree.unreadable_tables or tree.nonsense_tables)
    address, size, physical, _ = pages[1]
    frame = FrameTree(memory.read, form, memory.root, physical + size - PAGE)
    assert [low for low, _, _ in frame.ranges(KERNEL, (1 << 64) - 1).select(MAPPED)] == [address]


def check_search(form: ToyForm) -> None:
    """Where page frames are mapped. User mode has its own root, with all entries."""
    memory, pages = made()
    wanted = numpy.array(sorted(physical >> 14 for _, _, physical, _ in pages), numpy.uint64)
    found = find_frames(
        memory.read,
        form,
        memory.root,
        numpy.array(wanted, numpy.uint64),
        table_limit=1 << 10,
        place_limit=999,
    )
    assert sorted(found.places) == sorted((address - KERNEL, phys >> 14) for address, _, phys, _ in pages)


def check_broken(form: ToyForm) -> None:
    """Tables that are checked by the expected addresses of their pages."""
    memory = Memory()
    for number in range(2048):
        memory.map(KERNEL + number * PAGE, number * PAGE, 0)
    window = Window("direct map", KERNEL, KERNEL + LARGE_PAGE - 1, KERNEL, "", 1 << 39)
    assert find_broken(memory.read, form, memory.root, window, 100).broken == ()
    lowest = memory.tables[1, 0]
    for at in range(lowest, lowest + PAGE, 8):
        memory.data[at] = entry_of(0x1234000, TABLE)
    (found,) = find_broken(memory.read, form, memory.root, window, 100).broken
    assert (found.level, found.table, found.why) == (1, lowest, "is overwritten")


def kernel_of(
    form: ToyForm,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    vmcoreinfo: Mapping[str, str] = MappingProxyType({}),
) -> Kernel:
    """A kernel of the toy architecture with this memory."""
    monkeypatch.setattr(arch, "architectures", lambda: (toy.ARCHITECTURE,))
    monkeypatch.setattr(ToyFacts, "form", form)
    prog = drgn.Program(drgn.Platform(drgn.Architecture.UNKNOWN, drgn.PlatformFlags.IS_64_BIT))

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return memory.read(address, count)
        except NotInDump:
            raise drgn.FaultError("no such memory", address) from None

    def read_mapped(address: int, count: int, offset: int, physical: bool) -> bytes:
        found = walk(memory.read, form, memory.root, address)
        if found.physical is None:
            raise drgn.FaultError("not mapped", address)
        return read(found.physical, count, offset, True)

    prog.add_memory_segment(0, 1 << 39, read, True)
    prog.add_memory_segment(START, ALL - START, read_mapped)
    lines = {"ROOT": f"{memory.root:x}", "OSRELEASE": "0", "SIZE(page)": "64", **vmcoreinfo}
    return opening.kernel_of(Source(prog, "core", "made-up", "ELF", 0, True, vmcoreinfo=lines))


IMAGE_START = PLACES["kernel_image"].range.start
#: Pages of the toy's regions: (region, offset in it, physical, flags, whether it is a large one).
PAGES = (
    ("direct_map", 0, RAM, NO_EXEC | NO_USER_EXEC, True),
    ("direct_map", 5 * LARGE_PAGE, RAM + 5 * LARGE_PAGE, NO_EXEC | NO_USER_EXEC, True),
    ("vmalloc", 3 * PAGE, RAM + 7 * PAGE, NO_EXEC | NO_USER_EXEC, False),
    ("modules", 2 * PAGE, RAM + 9 * PAGE, READ_ONLY, False),
    ("kernel_image", 0, IMAGE_PHYSICAL, READ_ONLY, True),
    ("kernel_image", LARGE_PAGE + PAGE, IMAGE_PHYSICAL + LARGE_PAGE + PAGE, NO_EXEC, False),
    ("vmemmap", 0, RAM + 11 * PAGE, NO_EXEC, False),
)
#: Bytes that are mapped in each region, including regions inside it.
IN_ALL = {
    "direct_map": 2 * LARGE_PAGE,
    "vmalloc": 3 * PAGE + LARGE_PAGE,
    "modules": 2 * PAGE + LARGE_PAGE,
    "kernel_image": PAGE + LARGE_PAGE,
    "vmemmap": PAGE,
    "fixmap": 0,
}


def check_layout(form: ToyForm) -> None:
    """The layout, the mapped sizes, and the region of an address."""
    memory = Memory()
    for key, offset, physical, flags, large in PAGES:
        memory.map(PLACES[key].range.start + offset, physical, flags, large=large)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = kernel_of(form, memory, monkeypatch)
        report = layout(kernel)
        places = Places(kernel)
        inside = {key: places.key_at(PLACES[key].range.start + offset) for key, offset, *_ in PAGES}
        above = places.key_at(PLACES["modules"].range.end + 1)
        linear = {
            key: (kernel.walk(address).physical, address - rule.offset & ALL)
            for key, offset, *_ in PAGES
            for rule in [getattr(kernel.regions, key).linear(kernel)]
            if rule is not None
            for address in [PLACES[key].range.start + offset]
        }
        text = render(report, "text")
    rows = [row for row in report.tables[0].rows if row.state == "present"]
    cursor = 0
    for row in rows:
        if row.parent is None:
            assert row.start == cursor and row.end is not None
            cursor = row.end + 1
    assert cursor == 1 << 64
    placed = {row.key: row for row in rows if row.kind == "region"}
    assert placed.keys() >= PLACES.keys()
    assert {key: placed[key].parent for key in PLACES} == {
        **dict.fromkeys(PLACES),
        "modules": "vmalloc",
        "kernel_image": "modules",
    }
    assert {key: placed[key].mapped for key in PLACES} == IN_ALL
    assert placed["direct_map"].leaves == {"32M": 2}
    assert placed["vmalloc"].leaves == {"16K": 3, "32M": 1}
    assert placed["user"].end == (1 << 39) - 1
    assert inside == {key: key for key in inside} and above == "vmalloc"
    assert set(linear) == {"direct_map", "kernel_image"}
    assert all(walked == ruled for walked, ruled in linear.values())
    assert re.search(r"  modules +modules", text) and re.search(r"    kernel_image +kernel image", text)


def check_translate(form: ToyForm) -> None:
    """Addresses in all their forms."""
    memory = Memory()
    for key, offset, physical, flags, large in PAGES:
        memory.map(PLACES[key].range.start + offset, physical, flags, large=large)
    with pytest.MonkeyPatch.context() as monkeypatch:
        translator = Translator(kernel_of(form, memory, monkeypatch))
        for key, offset, physical, _, large in PAGES:
            virtual = PLACES[key].range.start + offset + 0x2345
            found = translator.translate(Input("", virtual, "virtual"))
            assert (found.state, found.region, found.physical) == ("mapped", key, physical + 0x2345)
            assert found.pfn is not None
            assert (found.pfn, found.page_size) == (physical + 0x2345 >> 14, LARGE_PAGE if large else PAGE)
            # The struct page, which has 64 bytes; one page of them is mapped.
            place = (found.pfn - (RAM >> 14)) * 64
            assert found.page == (PLACES["vmemmap"].range.start + place if place < PAGE else None)
            steps = walk(memory.read, form, memory.root, virtual).steps
            assert [step.level for step in found.walk] == ["pgd", "pmd", "pte"][: len(steps)]
            assert [step.value for step in found.walk] == [memory.data[step.entry_address] for step in steps]
        # The direct map begins at the first RAM, and not at physical address 0.
        back = translator.translate(Input("", RAM + 5 * LARGE_PAGE, "physical"))
        assert (back.virtual, back.state) == (PLACES["direct_map"].range.start + 5 * LARGE_PAGE, "mapped")
        lowest = translator.translate(Input("", 0x1000, "physical"))
        assert lowest.virtual is None
        assert translator.translate(Input("", 1 << 39, "virtual")).state == "non-canonical"


def check_ptdump(form: ToyForm) -> None:
    """Page tables as text, with the toy's headings and names."""
    memory, pages = made()
    start = PLACES["fixmap"].range.start
    for number in range(6):
        # Distant frames make one line; different flags make a new one.
        flags = NO_EXEC if number < 3 else READ_ONLY if number < 4 else FOR_USER
        memory.map(start + number * PAGE, (5 - number) * LARGE_PAGE, flags)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = kernel_of(form, memory, monkeypatch)
        text = "".join(render_stream(ptdump(kernel, kernel.kernel_root), "text"))
        rows = "".join(render_stream(ptdump(kernel, kernel.kernel_root, only_wx=True), "json"))
    below, above = text.split("---[ fixmap ]---\n")
    mapped = re.findall(r"^(PTE|PMD) ([0-9a-f]+)\+([0-9a-f]+) [a-z -]+$", below, re.M)
    assert [(int(start, 16), int(size, 16), level) for level, start, size in mapped] == [
        (address, size, "PMD" if size == LARGE_PAGE else "PTE") for address, size, _, _ in pages
    ]
    assert re.findall(r"---\[ (\w+) \]---", text) == ["direct_map", "vmalloc", "vmemmap", "fixmap"]
    # x86-64 limits the lines below that heading; without KASAN's shadow there is no such heading.
    assert above.splitlines()[:3] == [
        f"PTE {start:x}+{3 * PAGE:x} nx",
        f"PTE {start + 3 * PAGE:x}+{PAGE:x} ro",
        "... 3 entries skipped ... ",
    ]
    assert text.splitlines()[-1] == "# there is no heading for kasan_shadow: no toy has it"
    both = EFFECTIVE_WRITE | EFFECTIVE_EXEC
    assert [int(row["start"], 16) for row in json.loads(rows)["ranges"]] == [
        *(address for address, _, _, rights in pages if rights & both == both),
        start + 4 * PAGE,
    ]


def check_rules(form: ToyForm) -> None:
    """Rules of ``check``, and other mappings of a page."""
    memory = Memory()
    for key, offset, physical, flags, large in PAGES:
        memory.map(PLACES[key].range.start + offset, physical, flags, large=large)
    stray = PLACES["vmemmap"].range.end + 1
    wx = PLACES["vmalloc"].range.start + 7 * PAGE
    memory.map(stray, RAM, READ_ONLY | NO_EXEC, table=TABLE_NO_USER)
    memory.map(wx, RAM + 5 * LARGE_PAGE + 3 * PAGE, FOR_USER)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = kernel_of(form, memory, monkeypatch)
        found = {
            rule: [(finding.start, finding.end) for finding in judge(kernel).findings]
            for rule, judge in (
                ("wx", rights.writable_and_executable),
                ("user", rights.user_bit),
                ("regions", rights.region_rights),
                ("overlap", places.overlap),
                ("linear", places.linear),
                ("strays", places.strays),
            )
        }
        alias = aliases(kernel, RAM + 5 * LARGE_PAGE + 3 * PAGE + 5).found
    assert found == {
        "wx": [(wx, wx + PAGE - 1)],
        "user": [(wx, wx + PAGE - 1)],
        # The text of modules and of the image lies in vmalloc, but does not belong to it.
        "regions": [(wx, wx + PAGE - 1)],
        "overlap": [],
        "linear": [],
        "strays": [(stray, stray + PAGE - 1)],
    }
    assert [(one.virtual, one.page_size) for one in alias] == [
        (PLACES["direct_map"].range.start + 5 * LARGE_PAGE + 3 * PAGE + 5, LARGE_PAGE),
        (wx + 5, PAGE),
    ]


#: VMCOREINFO's lines about struct pages in 6.12 without NUMA; its five zones have the last numbers.
PAGE_KEYS: Dict[str, int] = {
    **{"OFFSET(page.flags)": 0, "OFFSET(page.compound_head)": 8, "OFFSET(page.mapping)": 24},
    **{"OFFSET(page.private)": 40, "OFFSET(page._mapcount)": 48, "OFFSET(page._refcount)": 52},
    **{"NUMBER(PG_lru)": 5, "NUMBER(PG_private)": 12, "NUMBER(PG_swapcache)": 15},
    **{"NUMBER(PG_swapbacked)": 18, "NUMBER(PG_head_mask)": 64},
    **{"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": 0xF0000000, "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)": 0xF5000000},
    **{"OFFSET(pglist_data.node_zones)": 0, "OFFSET(pglist_data.nr_zones)": 5 * 1536 + 16 * 6},
    **{"SIZE(zone)": 1536, "SIZE(mem_section)": 16, "OFFSET(mem_section.section_mem_map)": 0},
    **{"LENGTH(mem_section)": 4, "NUMBER(SECTION_SIZE_BITS)": 30},
}
#: The pages in order: (type, number, flags, mapping, count of mappings or page type, references).
STRUCT_PAGES = (
    ("free", 1 << 4, 0, 0, 0xF0000004, 0),
    ("slab", 40, 0, 0, 0xF5000000, 1),
    ("anon", 100, 1 << 18 | 1 << 5, START + 0x1001, 0, 1),
    ("file", 70, 1 << 5, START + 0x2000, 0xFFFFFFFF, 2),
    ("kernel_or_reserved", 30, 0, 0, 0xFFFFFFFF, 1),
)


def check_census(form: ToyForm) -> None:
    """Struct pages on two distant pages of the vmemmap, and a section of which only these are mapped."""
    memory = Memory()
    memory.map(START, RAM, NO_EXEC, large=True)
    frames = RAM + 64 * LARGE_PAGE, RAM + 66 * LARGE_PAGE
    for number, frame in enumerate(frames):
        memory.map(PLACES["vmemmap"].range.start + number * PAGE, frame, NO_EXEC)
    pages: List[bytes] = []
    for kind, count, flags, mapping, page_type, references in STRUCT_PAGES:
        order = 4 if kind == "free" else 0
        for number in range(count):
            first = kind != "free" or number == 0
            kept = page_type if first else 0xFFFFFFFF
            words = (flags, 0, 0, mapping, 0, order if first else 0)
            pages.append(struct.pack("<6QIIQ", *words, kept, references, 0))
    pages += [pages[-1]] * (2 * PAGE // 64 - len(pages))
    memory.write(frames[0], b"".join(pages[:256]))
    memory.write(frames[1], b"".join(pages[256:]))
    # The fourth section is the first gigabyte of RAM: has a map, is online and was present at boot.
    memory.write(RAM, struct.pack("<4Q", START + PAGE, 0, 0, 0) + bytes(PAGE - 32))
    memory.write(RAM + PAGE, bytes(48) + struct.pack("<2Q", 0xF, 0) + bytes(PAGE - 64))
    keys = {key: str(value) for key, value in PAGE_KEYS.items()}
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = kernel_of(form, memory, monkeypatch, {**keys, "SYMBOL(mem_section)": f"{START:x}"})
        counted = Pages(kernel).census()
    wanted = Counter({kind: count for kind, count, *_ in STRUCT_PAGES})
    wanted["kernel_or_reserved"] += 2 * PAGE // 64 - sum(wanted.values())
    assert counted.by(lambda group: group.type) == wanted
    assert {group.zone for group in counted.groups} == {"DMA"}
    assert [group.order for group in counted.groups if group.type == "free" and group.first] == [4]
    in_section = (1 << 30) // PAGE
    assert (counted.total, counted.unmapped, counted.missing) == (in_section, in_section - 512, 0)
    assert counted.holes == RAM // PAGE


CHECKS = (
    *(check_walk, check_bulk, check_tree, check_search, check_broken, check_layout, check_translate),
    *(check_ptdump, check_rules, check_census),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_toy(check: Any) -> None:
    check(FORM)


def _mutant(**members: Any) -> Type[ToyForm]:
    return type("Mutant", (ToyForm,), members)


def _rights(entry: Any) -> Any:
    return FORM.rights(entry, 1)


# Each idea in x86-64's form, and the checks that detect the difference.
KERNELS = "layout translate ptdump rules census"
ALL_BUT_BROKEN = f"walk bulk tree search {KERNELS}"
EVERY = f"{ALL_BUT_BROKEN} broken"
MUTATIONS: Dict[str, Tuple[Dict[str, Any], str]] = {
    "pages of 4K": ({"page_shift": 12}, EVERY),
    "little-endian entries": ({"byte_order": "little"}, EVERY),
    "512 entries": ({"index_bits": lambda form, level: 3 if level == 3 else 9}, ALL_BUT_BROKEN),
    "a root as wide as other tables": (
        {"index_bits": lambda form, level: 11},
        f"walk bulk tree {KERNELS}",
    ),
    "large pages at another level": ({"leaf_levels": lambda form: (3,)}, ALL_BUT_BROKEN),
    "both halves in one root": (
        {"half_bits": property(lambda form: form.shift(form.levels) + 2)},
        f"walk tree {KERNELS}",
    ),
    "addresses by a mask": ({"table_address": lambda form, entry: entry & ((1 << 52) - (1 << 14))}, EVERY),
    "table entries that take no rights away": ({"table_rights": lambda form, entry: 31}, "tree ptdump"),
    "x86-64's bits of rights": (
        {"rights": lambda form, entry, level: (entry & 6) | 1 | (entry >> 63 ^ 1) * 24},
        "tree ptdump rules",
    ),
    "one right to execute": (
        {"rights": lambda form, entry, level: _rights(entry) & 15 | (entry >> 4 & 1 ^ 1) * 16},
        "tree",
    ),
    "x86-64's flags": ({"flag_bits": lambda form, level: 0xFFF | 0xFFF << 52}, "ptdump"),
    "one root for both halves": ({"shared_root": True}, "ptdump"),
    "a guard hole below the kernel": (
        {"kernel": property(lambda form: AddressRange(form.upper.start + (1 << 36), ALL))},
        "tree ptdump",
    ),
    "names by numbers of levels": (
        {"level_name": lambda form, level: ("pte", "pmd", "pud", "p4d", "pgd")[level - 1]},
        "translate",
    ),
}


@pytest.mark.parametrize("idea", MUTATIONS)
def test_each_idea_matters(idea: str) -> None:
    members, seen_by = MUTATIONS[idea]
    form = _mutant(**members)(3)
    for check in CHECKS:
        if check.__name__.split("_")[1] in seen_by.split():
            with pytest.raises((AssertionError, ValueError, IndexError, OverflowError, Unavailable)):
                check(form)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # The parent of a region is not given: it overlaps.
        ({"modules": {"parent": ""}}, {"modules": "overlap vmalloc", "kernel_image": "overlap vmalloc"}),
        ({"kernel_image": {"parent": "vmalloc"}}, {"modules": "overlap kernel image"}),
        ({"modules": {"range": PLACES["direct_map"].range}}, {"modules": "not inside vmalloc"}),
        ({"kernel_image": {"parent": "fixmap"}}, {"kernel_image": "not inside fixmap"}),
        # The parent of a region is unknown: it has no parent, and regions inside it stay there.
        ({"vmalloc": {}}, {"vmalloc": "no toy has it"}),
    ],
)
def test_regions_in_regions(
    changed: Dict[str, Dict[str, Any]], expected: Dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, members in changed.items():
        if members:
            monkeypatch.setitem(PLACES, key, replace(PLACES[key], **members))
        else:
            monkeypatch.delitem(PLACES, key)
    kernel = kernel_of(FORM, Memory(), monkeypatch)
    found = place_regions(kernel)
    missing = {region.key: why.reason for region, why in found.missing if region.key != "kasan_shadow"}
    assert missing.keys() == expected.keys()
    assert all(part in missing[key] for key, part in expected.items())
    rows = list(found.nested())
    assert [place.range.start for _, place in rows] == sorted(place.range.start for _, place in rows)
    if "vmalloc" in changed:
        assert "modules" in [region.key for region, _ in found.placed]
        assert [region.key for region, _ in found.inside["modules"]] == ["kernel_image"]
        assert layout(kernel).tables[0].rows and Places(kernel).key_at(IMAGE_START) == "kernel_image"
