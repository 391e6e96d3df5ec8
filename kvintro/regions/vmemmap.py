# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual memory map: an array of ``struct page``, indexed by page frame number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    ALL,
    Address,
    Asked,
    Column,
    Contents,
    Located,
    Size,
    Table,
)
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View, rights_text
from kvintro.readers.neighbours import merged
from kvintro.readers.sections import SUBSECTION_SHIFT, SectionForm, section_form, section_table
from kvintro.readers.structures import TROUBLE, need_types, number, pointer_at, text_at
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

# include/linux/mmzone.h: flags in the low bits of section_mem_map. So far they take at most 6 bits; the map
# of a section is aligned to far more.
_FLAG_BITS = 12
_SECTION_FLAGS = (1 << _FLAG_BITS) - 1

_MAX_SECTIONS = 1 << 25  # MAX_PHYSMEM_BITS - SECTION_SIZE_BITS with 5 levels
# include/linux/mmzone.h: bits 0 to 3 have had these meanings since 5.3. The next one exists only with
# ZONE_DEVICE, so it is looked up by name.
_FLAGS = ((0, "present"), (1, "has_mem_map"), (2, "online"), (3, "early"))
_PRESENT, _HAS_MEM_MAP, _ONLINE, _EARLY = 1, 2, 4, 8
_DEVICE = "SECTION_TAINT_ZONE_DEVICE_BIT"


@dataclass(frozen=True)
class SectionRow:
    """Consecutive sections of memory that are alike.

    :ivar first: number of the first section; :ivar:`count` is how many there are.
    :ivar start: first address of their struct pages; the last is :ivar:`end`.
    :ivar physical: first physical address of their memory; the last is :ivar:`physical_end`.
    :ivar subsections: number of 2 MB subsections with struct pages; :ivar:`subsections_possible` counts all.
    :ivar zones: zones that span them, with the node: ``0:Normal``.
    """

    first: int
    count: int
    start: Address
    end: Address
    size: Size
    physical: Address
    physical_end: Address
    flags: Tuple[str, ...]
    online: bool
    subsections: int
    subsections_possible: int
    zones: Tuple[str, ...]
    mapped: Size
    pages: Mapping[str, int]
    problem: Optional[str]


@dataclass(frozen=True)
class ZoneRow:
    """A zone of a node, with the size of its struct pages."""

    node: int
    zone: str
    physical: Address
    physical_end: Address
    spanned: int
    present: int
    struct_pages: Size


_SECTION_COLUMNS = (
    Column("first", "section", "right"),
    Column("count", "sections", "right", 4),
    Column("start", "start"),
    Column("end", "end", spare=6),
    Column("physical", "of memory"),
    Column("physical_end", "to", spare=5),
    Column("flags", "flags"),
    Column("subsections", "subsections", "right", 2),
    Column("zones", "zones"),
    Column("mapped", "mapped", "right", 1),
    Column("pages", "pages", spare=3),
    Column("problem", ""),
)
_ZONE_COLUMNS = (
    Column("node", "node", "right"),
    Column("zone", "zone"),
    Column("physical", "physical"),
    Column("physical_end", "to", spare=1),
    Column("spanned", "pages spanned", "right"),
    Column("present", "present", "right"),
    Column("struct_pages", "struct pages", "right"),
)


class Vmemmap(Region):
    """From ``VMEMMAP_START``: a struct page for each page frame."""

    key = "vmemmap"
    row = 7
    name = "virtual memory map, struct page"
    macro = "VMEMMAP_START"
    traits = Trait.NO_EXEC

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)

    def pages(self, kernel: Kernel) -> Tuple[int, int, int]:
        """(address of page frame 0's struct page, size of a struct page, number that fit in the region).

        :raises Unavailable: the source does not contain it.
        """
        found = kernel.place(self)
        size = kernel.page_struct_size.value
        if not 0 < size <= kernel.form.page_size:
            raise Unavailable(f"invalid size of struct page: {size} bytes")
        base = kernel.facts.memory_map.value
        return base, size, ((found.range.end - base & ALL) + 1) // size

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Sections of memory, where their struct pages are, and how much memory those take."""
        found = kernel.place(self)
        damage = Damage()
        base, page, _ = self.pages(kernel)
        form = section_form(kernel)
        if form.bitmap is None:
            damage.add(form.lack)
        zones = list(_zones(kernel, page, damage))
        view = View.of(kernel, found.range.start, found.range.end)
        rows = merged(_sections(kernel, form, view, base, page, zones, damage), _alike, _join)
        whole_mapping = view.stretch(found.range.start, found.range.end)
        covered = _covered(view, rows)
        # The struct pages of a huge page's tails are all alike and are mapped read-only to one page
        # (mm/hugetlb_vmemmap.c).
        shared = sum(
            high - low + 1
            for low, high, key in view.parts(found.range.start, found.range.end)
            if key & MAPPED and (key & LEVEL_MASK) >> LEVEL_SHIFT == 1 and rights_text(key)[1] == "-"
        )
        totals: Dict[str, object] = {
            "sections": sum(row.count for row in rows),
            "online": sum(row.count for row in rows if row.online),
            "struct_page": Size(page),
            "mapped": Size(whole_mapping.mapped),
            "saved_by_hugetlb": Size(shared),
            "memory_spent": Size(whole_mapping.mapped - shared),
        }
        notes = [*damage.notes]
        wrong = [row for row in rows if row.problem]
        notes += [f"section {row.first}: {row.problem}" for row in wrong[:5]]
        if whole_mapping.mapped != covered and not damage:
            notes.append(f"{whole_mapping.mapped - covered} mapped bytes do not belong to a section")
        return Contents(
            (
                Table("sections", _SECTION_COLUMNS, rows),
                Table("zones", _ZONE_COLUMNS, zones, "zones"),
            ),
            totals,
            notes,
            partial=bool(damage),
        )


def _alike(one: SectionRow, other: SectionRow) -> bool:
    """Whether two adjacent sections can share a row: both are complete and correct."""
    return (
        (one.flags, one.zones) == (other.flags, other.zones)
        and one.problem is None
        and other.problem is None
        and one.subsections == one.subsections_possible
        and other.subsections == other.subsections_possible
    )


def _join(low: SectionRow, high: SectionRow) -> SectionRow:
    return replace(
        low,
        count=low.count + high.count,
        end=high.end,
        size=Size(low.size + high.size),
        physical_end=high.physical_end,
        subsections=low.subsections + high.subsections,
        subsections_possible=low.subsections_possible + high.subsections_possible,
        mapped=Size(low.mapped + high.mapped),
        pages={n: low.pages.get(n, 0) + high.pages.get(n, 0) for n in {**low.pages, **high.pages}},
    )


def _covered(view: View, rows: Sequence[SectionRow]) -> int:
    """Bytes mapped for sections. A large page may begin or end beyond the struct pages that it maps."""
    covered, reach = 0, -1
    for row in sorted(rows, key=lambda row: row.start):
        start, end = view.page_at(row.start).start, view.page_at(row.end).end
        if max(start, reach + 1) <= end:
            covered += view.stretch(max(start, reach + 1), end).mapped
        reach = max(reach, end)
    return covered


def _sections(
    kernel: Kernel,
    form: SectionForm,
    view: View,
    base: int,
    page: int,
    zones: Sequence[ZoneRow],
    damage: Damage,
) -> Iterator[SectionRow]:
    """Present sections (mm/sparse.c), one row each."""
    shift = kernel.section_size_bits.value
    if not SUBSECTION_SHIFT <= shift < 48:
        raise Unavailable(f"invalid size of sections: 2^{shift} bytes")
    pages, possible = 1 << shift - kernel.page_shift, 1 << shift - SUBSECTION_SHIFT
    flag_names = _flag_names(kernel)
    for index, address in _section_structs(kernel, form, damage):
        try:
            value, usage = (pointer_at(kernel, address + at) for at in (form.map, form.usage))
        except Unavailable as error:
            damage.add("a section cannot be read", error.what)
            continue
        if not value & _PRESENT:
            continue
        first = index * pages
        bitmap = _bitmap(kernel, form, usage, possible, damage)
        start, size = base + first * page & ALL, pages * page
        found = view.stretch(start, start + size - 1)
        problem = None
        if value & _HAS_MEM_MAP and value & ~_SECTION_FLAGS & ALL != base:
            problem = f"its map is at {value & ~_SECTION_FLAGS:016x}, not at {base:016x}"
        elif value & _HAS_MEM_MAP and not found.unreadable:
            problem = _missing(view, start, page << SUBSECTION_SHIFT - kernel.page_shift, bitmap, possible)
        physical, physical_end = first << kernel.page_shift, (first + pages << kernel.page_shift) - 1
        yield SectionRow(
            first=index,
            count=1,
            start=Address(start),
            end=Address(start + size - 1),
            size=Size(size),
            physical=Address(physical),
            physical_end=Address(physical_end),
            flags=tuple(name for bit, name in flag_names if value >> bit & 1),
            online=bool(value & _ONLINE),
            subsections=bin(bitmap).count("1"),
            subsections_possible=possible,
            zones=tuple(
                f"{zone.node}:{zone.zone}"
                for zone in zones
                if zone.spanned and zone.physical <= physical_end and physical <= zone.physical_end
            ),
            mapped=Size(found.mapped),
            pages=found.pages,
            problem=problem,
        )


def _flag_names(kernel: Kernel) -> List[Tuple[int, str]]:
    """(bit, name) of the flags of sections. One bit number depends on the kernel."""
    try:
        return [*_FLAGS, (int(kernel.prog.constant(_DEVICE).value_()), "zone_device")]
    except LookupError:
        return list(_FLAGS)


def _bitmap(kernel: Kernel, form: SectionForm, usage: int, possible: int, damage: Damage) -> int:
    """Bitmap of the subsections in use; all of them if that is unknown."""
    every = (1 << possible) - 1
    if not usage or form.bitmap is None:
        return every
    try:
        return int.from_bytes(kernel.read(usage + form.bitmap, -(-possible // 64) * 8), "little") & every
    except Unavailable as error:
        damage.add("the subsections of a section cannot be read", error.what)
        return every


def _missing(view: View, start: int, each: int, bitmap: int, possible: int) -> Optional[str]:
    """A note about subsections in use whose struct pages are not all mapped; None if there are none.

    :param each: bytes of a subsection's struct pages.
    """
    missing = [
        index
        for index in range(possible)
        if bitmap >> index & 1
        and view.stretch(start + index * each, start + (index + 1) * each - 1).mapped != each
    ]
    return f"struct pages of subsections {missing[:8]} are not mapped" if missing else None


def _section_structs(kernel: Kernel, form: SectionForm, damage: Damage) -> Iterator[Tuple[int, int]]:
    """(number, address of the struct) of all sections up to the highest that is present."""
    size = form.size
    try:
        last = kernel.value("__highest_present_section_nr").value
    except Unavailable:
        bits = kernel.facts.max_physmem_bits.value - kernel.section_size_bits.value
        last = (1 << bits) - 1
    if last >= _MAX_SECTIONS:
        damage.add("the number of sections is invalid", str(last))
        last = 0
    if kernel.number("LENGTH(mem_section)").value == 0 or not size:
        raise Unavailable("mem_section is empty")
    table = section_table(kernel)
    per_root = kernel.form.page_size // size
    for root in range(last // per_root + 1):
        try:
            pointer = pointer_at(kernel, table + 8 * root)
        except Unavailable as error:
            damage.add("the table of sections ends early", error.what)
            return
        if not pointer:
            continue
        for index in range(per_root):
            if root * per_root + index <= last:
                yield root * per_root + index, pointer + index * size


def section_is_online(kernel: Kernel, index: int) -> bool:
    """Whether a section of memory is present and online, read with VMCOREINFO's ``mem_section``.

    :raises Unavailable: the source does not contain it.
    """
    size = kernel.number("SIZE(mem_section)").value
    offset = kernel.number("OFFSET(mem_section.section_mem_map)").value
    page = kernel.form.page_size
    if not 0 < size <= page or not kernel.number("LENGTH(mem_section)").value:
        raise Unavailable("mem_section is empty")
    root, within = divmod(index, page // size)
    pointer = pointer_at(kernel, kernel.number("SYMBOL(mem_section)").value + 8 * root)
    if not pointer:
        return False
    value = int.from_bytes(kernel.read(pointer + within * size + offset, 8), "little")
    return value & (_PRESENT | _ONLINE) == _PRESENT | _ONLINE


def _zones(kernel: Kernel, page: int, damage: Damage) -> Iterator[ZoneRow]:
    """All zones with memory, of every node."""
    try:
        need_types(kernel, "members of struct zone")
        for pgdat in kernel.nodes():
            node = int(pgdat.node_id.value_())
            for zone in pgdat.node_zones.read_():
                start, spanned = number(zone, "zone_start_pfn"), number(zone, "spanned_pages")
                present = number(zone, "present_pages")
                if not spanned or start + spanned >= 1 << 52:
                    continue
                yield ZoneRow(
                    node=node,
                    zone=text_at(kernel, number(zone, "name"), 32),
                    physical=Address(start << kernel.page_shift),
                    physical_end=Address((start + spanned << kernel.page_shift) - 1),
                    spanned=spanned,
                    present=present,
                    struct_pages=Size(present * page),
                )
    except TROUBLE as error:
        damage.add("zones cannot be read", error.what if isinstance(error, Unavailable) else error)


REGION = Vmemmap()
