# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual memory map: one ``struct page`` for every page frame, at its number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import CPU_ENTRY_AREA_BASE, PAGE_SHIFT, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.model import Address, AddressRange, Column, Fact, Located, Placement, Size, Table
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED
from kvintro.readers.mapped import View, rights_text
from kvintro.readers.randomness import Randomised, region_draw
from kvintro.readers.sections import SUBSECTION_SHIFT, SectionForm, section_form, section_table
from kvintro.readers.structures import (
    TROUBLE,
    Damage,
    need_types,
    number,
    pointer_at,
    text_at,
)
from kvintro.regions import Asked, Contents, Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

# include/linux/mmzone.h: flags kept in the low bits of section_mem_map; 6 bits at most so far, while the map
# of a section is aligned to far more.
_SECTION_FLAGS = 0xFFF

_MAX_SECTIONS = 1 << 25  # MAX_PHYSMEM_BITS - SECTION_SIZE_BITS with 5 levels
# include/linux/mmzone.h: bits 0 to 3 have been these since 5.3; the next one is there only with ZONE_DEVICE,
# so it is looked for by its name.
_FLAGS = ((0, "present"), (1, "has_mem_map"), (2, "online"), (3, "early"))
_PRESENT, _HAS_MEM_MAP, _ONLINE, _EARLY = 1, 2, 4, 8
_DEVICE = "SECTION_TAINT_ZONE_DEVICE_BIT"


@dataclass(frozen=True)
class SectionRow:
    """Sections of memory one after the other that are alike.

    :ivar first: number of the first; :ivar:`count` how many.
    :ivar start: of their struct pages, to :ivar:`end`.
    :ivar physical: of their memory, to :ivar:`physical_end`.
    :ivar subsections: how many of 2 MB have struct pages, of how many there could be.
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
    """A zone of a node, with what it takes in struct pages."""

    node: int
    zone: str
    physical: Address
    physical_end: Address
    spanned: int
    present: int
    struct_pages: Size


_SECTION_COLUMNS = (
    Column("first", "section", "right"),
    Column("count", "sections", "right"),
    Column("start", "start"),
    Column("end", "end"),
    Column("physical", "of memory"),
    Column("physical_end", "to"),
    Column("flags", "flags"),
    Column("subsections", "subsections", "right"),
    Column("zones", "zones"),
    Column("mapped", "mapped", "right"),
    Column("pages", "pages"),
    Column("problem", ""),
)
_ZONE_COLUMNS = (
    Column("node", "node", "right"),
    Column("zone", "zone"),
    Column("physical", "physical"),
    Column("physical_end", "to"),
    Column("spanned", "pages spanned", "right"),
    Column("present", "present", "right"),
    Column("struct_pages", "struct pages", "right"),
)


class Vmemmap(Region):
    """From ``vmemmap_base``; what is reserved follows arch/x86/mm/kaslr.c:kernel_randomize_memory."""

    key = "vmemmap"
    row = 7
    name = "virtual memory map, struct page"
    macro = "VMEMMAP_START"

    def locate(self, kernel: Kernel) -> Located:
        base = kernel.first_fact(
            lambda: kernel.value("vmemmap_base"),
            lambda: kernel.number("SYMBOL(vmemmap)"),
            lambda: self._from_section(kernel),
        )
        default = kernel.geometry.vmemmap_base
        page = kernel.page_struct_size.value
        direct = kernel.locate("direct_map")
        if not isinstance(direct, Placement):
            raise Unavailable(f"its size follows the direct map's, and there {direct.reason}")
        needed = (direct.range.size >> PAGE_SHIFT) * page
        reserved, size = -(-needed >> 40) << 40, "size of the direct map"
        if direct.slide and base.value + reserved > CPU_ENTRY_AREA_BASE > base.value:
            # How much was reserved for the direct map need not be known exactly, but what comes next is.
            reserved, size = CPU_ENTRY_AREA_BASE - base.value, "up to cpu_entry_area"
        used, note = None, ""
        try:
            frames = kernel.max_pfn
            last = base.value + frames.value * page - 1
            if base.value <= last < base.value + reserved:
                used, note = AddressRange(base.value, last), f"up to {frames.provenance}"
        except Unavailable:
            pass
        return Placement(
            AddressRange(base.value, base.value + reserved - 1),
            f"{base.provenance}, {size}",
            default_start=default,
            slide=base.value - default,
            used=used,
            used_note=note,
        )

    def pages(self, kernel: Kernel) -> Tuple[int, int, int]:
        """(address of page frame 0's struct page, size of each, how many there is room for).

        :raises Unavailable: the source does not tell.
        """
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        size = kernel.page_struct_size.value
        if not 0 < size <= PAGE_SIZE:
            raise Unavailable(f"a struct page of {size} bytes makes no sense")
        return found.range.start, size, found.range.size // size

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """Its base (arch/x86/mm/kaslr.c)."""
        return (region_draw(kernel, self.key, "virtual memory map"),)

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Sections of memory, whose struct pages these are, and what they cost."""
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        damage = Damage()
        base, page, _ = self.pages(kernel)
        form = section_form(kernel)
        if form.bitmap is None:
            damage.add(form.lack)
        zones = list(_zones(kernel, page, damage))
        view = View.of(kernel, found.range.start, found.range.end)
        rows: List[SectionRow] = []
        for row in _sections(kernel, form, view, base, page, zones, damage):
            last = rows[-1] if rows else None
            alike = last and (last.flags, last.zones, last.problem, row.problem) == (
                row.flags,
                row.zones,
                None,
                None,
            )
            whole = (
                last
                and last.subsections == last.subsections_possible
                and row.subsections == row.subsections_possible
            )
            if last and alike and whole and last.first + last.count == row.first:
                pages = {n: last.pages.get(n, 0) + row.pages.get(n, 0) for n in {**last.pages, **row.pages}}
                rows[-1] = replace(
                    last,
                    count=last.count + 1,
                    end=row.end,
                    size=Size(last.size + row.size),
                    physical_end=row.physical_end,
                    subsections=last.subsections + row.subsections,
                    subsections_possible=last.subsections_possible + row.subsections_possible,
                    mapped=Size(last.mapped + row.mapped),
                    pages=pages,
                )
            else:
                rows.append(row)
        whole_mapping = view.stretch(found.range.start, found.range.end)
        covered = sum(row.mapped for row in rows)
        # Tails of huge pages, whose struct pages are all alike: mapped read-only to a page that is kept once
        # (mm/hugetlb_vmemmap.c).
        shared = sum(
            high - low + 1
            for low, high, key in view.parts(found.range.start, found.range.end)
            if key & MAPPED and (key & LEVEL_MASK) >> LEVEL_SHIFT == 1 and rights_text(key)[1] == "-"
        )
        totals: Dict[str, Any] = {
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
            notes.append(f"{whole_mapping.mapped - covered} bytes are mapped that belong to no section")
        return Contents(
            (
                Table("sections", _SECTION_COLUMNS, rows),
                Table("zones", _ZONE_COLUMNS, zones, "zones"),
            ),
            totals,
            notes,
            partial=bool(damage),
        )

    def _from_section(self, kernel: Kernel) -> Fact[int]:
        """The map of section 0, less the flags: with SPARSEMEM_VMEMMAP every section's is vmemmap itself."""
        root = kernel.number("SYMBOL(mem_section)").value
        offset = kernel.number("OFFSET(mem_section.section_mem_map)").value
        if kernel.source.vmcoreinfo.get("LENGTH(mem_section)"):
            # SPARSEMEM_EXTREME: an array of pointers to pages of sections; the key has the array's address.
            root = int.from_bytes(kernel.read(root, 8), "little")
        value = int.from_bytes(kernel.read(root + offset, 8), "little") & ~_SECTION_FLAGS
        if value < kernel.geometry.guard_hole.end:
            raise Unavailable("section 0 has no memory map")
        return Fact(value, "VMCOREINFO SYMBOL(mem_section)")


def _sections(
    kernel: Kernel,
    form: SectionForm,
    view: View,
    base: int,
    page: int,
    zones: Sequence[ZoneRow],
    damage: Damage,
) -> Iterator[SectionRow]:
    """Sections that are present (mm/sparse.c), each alone."""
    shift = kernel.section_size_bits.value
    if not SUBSECTION_SHIFT <= shift < 48:
        raise Unavailable(f"sections of 2^{shift} bytes make no sense")
    pages, possible = 1 << shift - PAGE_SHIFT, 1 << shift - SUBSECTION_SHIFT
    try:
        device: Optional[int] = int(kernel.prog.constant(_DEVICE).value_())
    except LookupError:
        device = None
    for index, address in _section_structs(kernel, form, damage):
        try:
            value, usage = (pointer_at(kernel, address + at) for at in (form.map, form.usage))
        except Unavailable as error:
            damage.add("a section cannot be read", error.what)
            continue
        if not value & _PRESENT:
            continue
        flags = [name for bit, name in _FLAGS if value >> bit & 1]
        if device is not None and value >> device & 1:
            flags.append("zone_device")
        first = index * pages
        bitmap = (1 << possible) - 1
        try:
            if usage and form.bitmap is not None:
                data = kernel.read(usage + form.bitmap, -(-possible // 64) * 8)
                bitmap = int.from_bytes(data, "little") & (1 << possible) - 1
        except Unavailable as error:
            damage.add("the subsections of a section cannot be read", error.what)
        start, size = base + first * page, pages * page
        found = view.stretch(start, start + size - 1)
        problem = None
        if value & _HAS_MEM_MAP and value & ~_SECTION_FLAGS & (1 << 64) - 1 != base:
            problem = f"its map is at {value & ~_SECTION_FLAGS:016x}, not at {base:016x}"
        elif value & _HAS_MEM_MAP and not found.unreadable:
            problem = _missing(view, start, page, bitmap, possible)
        physical, physical_end = first << PAGE_SHIFT, (first + pages << PAGE_SHIFT) - 1
        yield SectionRow(
            first=index,
            count=1,
            start=Address(start),
            end=Address(start + size - 1),
            size=Size(size),
            physical=Address(physical),
            physical_end=Address(physical_end),
            flags=tuple(flags),
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


def _missing(view: View, start: int, page: int, bitmap: int, possible: int) -> Optional[str]:
    """Subsections that should have struct pages, and whose are not all mapped."""
    each = (1 << SUBSECTION_SHIFT - PAGE_SHIFT) * page
    missing = [
        index
        for index in range(possible)
        if bitmap >> index & 1
        and view.stretch(start + index * each, start + (index + 1) * each - 1).mapped != each
    ]
    return f"struct pages of subsections {missing[:8]} are not mapped" if missing else None


def _section_structs(kernel: Kernel, form: SectionForm, damage: Damage) -> Iterator[Tuple[int, int]]:
    """(number, address of the struct) of all sections up to the highest present one."""
    size = form.size
    try:
        last = kernel.value("__highest_present_section_nr").value
    except Unavailable:
        bits = kernel.geometry.max_physmem_bits - kernel.section_size_bits.value
        last = (1 << bits) - 1
    if last >= _MAX_SECTIONS:
        damage.add("the number of sections makes no sense", str(last))
        last = 0
    if kernel.number("LENGTH(mem_section)").value == 0 or not size:
        raise Unavailable("mem_section is empty")
    table = section_table(kernel)
    per_root = PAGE_SIZE // size
    for root in range(last // per_root + 1):
        try:
            pointer = pointer_at(kernel, table + 8 * root)
        except Unavailable as error:
            damage.add("the table of sections breaks off", error.what)
            return
        if not pointer:
            continue
        for index in range(per_root):
            if root * per_root + index <= last:
                yield root * per_root + index, pointer + index * size


def section_is_online(kernel: Kernel, index: int) -> bool:
    """Whether a section of memory is present and online, by what VMCOREINFO says of ``mem_section``.

    :raises Unavailable: the source does not tell.
    """
    size = kernel.number("SIZE(mem_section)").value
    offset = kernel.number("OFFSET(mem_section.section_mem_map)").value
    if not 0 < size <= PAGE_SIZE or not kernel.number("LENGTH(mem_section)").value:
        raise Unavailable("mem_section is empty")
    root, within = divmod(index, PAGE_SIZE // size)
    pointer = pointer_at(kernel, kernel.number("SYMBOL(mem_section)").value + 8 * root)
    if not pointer:
        return False
    value = int.from_bytes(kernel.read(pointer + within * size + offset, 8), "little")
    return value & (_PRESENT | _ONLINE) == _PRESENT | _ONLINE


def _zones(kernel: Kernel, page: int, damage: Damage) -> Iterator[ZoneRow]:
    """Every node's zones that have memory."""
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
                    physical=Address(start << PAGE_SHIFT),
                    physical_end=Address((start + spanned << PAGE_SHIFT) - 1),
                    spanned=spanned,
                    present=present,
                    struct_pages=Size(present * page),
                )
    except TROUBLE as error:
        damage.add("zones cannot be read", error.what if isinstance(error, Unavailable) else error)


REGION = Vmemmap()
