# SPDX-License-Identifier: LGPL-2.1-or-later
"""The direct map: all physical memory at consecutive virtual addresses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    ALL,
    Address,
    AddressRange,
    Asked,
    Column,
    Contents,
    Linear,
    Located,
    Size,
    Table,
)
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, NONZERO, OVER_LIMIT, UNREADABLE
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View, caching_text, page_text, rights_text
from kvintro.readers.memory import SYSTEM_RAM, Physical
from kvintro.readers.neighbours import merged
from kvintro.regions import Region
from kvintro.regions.direct_map_count import kernel_count
from kvintro.regions.direct_map_reasons import POISONED, Block, Reasons
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.arch.form import PagingForm
    from kvintro.kernels import Kernel


@dataclass(frozen=True)
class RamRow:
    """A range of RAM, from the tree of memory resources.

    :ivar start: first address in the direct map.
    :ivar pages: number of entries that map it, by page size.
    :ivar missing: number of its bytes that are not mapped.
    """

    physical: Address
    physical_end: Address
    size: Size
    start: Address
    end: Address
    mapped: Size
    missing: Size
    pages: Mapping[str, int]


@dataclass(frozen=True)
class RunRow:
    """A range with the same page size, rights and memory type.

    :ivar resources: names of the outermost lines of /proc/iomem for its physical addresses.
    """

    start: Address
    end: Address
    size: Size
    page_size: str
    rights: str
    caching: str
    physical: Address
    resources: Tuple[str, ...]


@dataclass(frozen=True)
class SplitRow:
    """Adjacent blocks of 2 MB that are mapped by pages of 4 KB, with the reason.

    :ivar why: what differs from page to page.
    """

    start: Address
    end: Address
    size: Size
    physical: Address
    blocks: int
    why: str


_RAM_COLUMNS = (
    Column("physical", "physical"),
    Column("physical_end", "end"),
    Column("size", "size", "right"),
    Column("start", "mapped at"),
    Column("mapped", "mapped", "right"),
    Column("missing", "missing", "right"),
    Column("pages", "pages"),
)
_RUN_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("page_size", "pages", spare=2),
    Column("rights", "rights"),
    Column("caching", "caching", spare=3),
    Column("physical", "physical", spare=4),
    Column("resources", "what is there"),
)
_SPLIT_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("physical", "physical", spare=1),
    Column("why", "why"),
)
_HOLE_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("physical", "physical", spare=1),
    Column("resource", "resource"),
    Column("why", "why"),
)


class DirectMap(Region):
    """From ``PAGE_OFFSET``; the architecture says how much is reserved."""

    key = "direct_map"
    row = 5
    name = "direct map of physical memory"
    macro = "PAGE_OFFSET"
    traits = Trait.PER_CPU

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """``__pa()`` below the image."""
        found = kernel.place(self)
        return Linear(found.range, kernel.linear_offset.value, whole=not found.open_ended)

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """RAM and its mapping, blocks split into small pages, and missing memory, with the reasons."""
        offset, reserved = kernel.linear_offset.value, kernel.place(self).range
        last = offset + (kernel.max_pfn.value << kernel.page_shift) - 1 & ALL
        if last not in reserved:
            raise Unavailable("max_pfn is not within the direct map")
        where = AddressRange(reserved.start, last)
        damage = Damage()
        view = View.of(kernel, where.start, last)
        physical = Physical(kernel, damage)
        if not physical.resources:
            why = physical.problem or "the tree of memory resources is empty"
            damage.add("it is unknown which parts are RAM", why)
        runs = merged(_runs(kernel, view, where, offset, physical), _alike, _join)
        reasons = Reasons(kernel, offset, physical, damage)
        holes = [row for hole in _holes(view, where) for row in reasons.hole(hole.start, hole.end, hole.kept)]
        splits = _splits(kernel.form, view, where, offset, reasons)
        ram = _ram_rows(kernel, view, where, offset, physical)
        counted, unreadable = _counted(kernel.form, view, where)
        poisoned = sum(row.blocks for row in splits if POISONED in row.why)
        count = kernel_count(kernel, counted, poisoned)
        found: Dict[str, object] = {
            "mapped": Size(sum(row.size for row in runs)),
            "not_mapped": Size(sum(row.size for row in holes)),
            **{f"pages_of_{name}": counted.get(name, 0) for name in kernel.form.page_names.values()},
            "blocks_split_in_image": count.in_image,
            **({"blocks_split_by_hwpoison": count.by_hwpoison} if count.by_hwpoison else {}),
        }
        totals: Dict[str, object] = {
            **({"ram": Size(sum(row.size for row in ram))} if ram else {}),
            # Zeros would be wrong if no table can be read.
            **(found if runs or not unreadable else {}),
            **{f"kernel_counts_{name}": number for name, number in count.counts.items()},
        }
        notes = [*damage.notes]
        if unreadable:
            notes.append(f"page tables of {unreadable} bytes are not in this source")
        elif count.disagreement:
            notes.append(f"direct_pages_count does not agree with the page tables: {count.disagreement}")
        return Contents(
            (
                Table("ram", _RAM_COLUMNS, ram, "RAM"),
                Table("runs", _RUN_COLUMNS, runs, "mapped alike"),
                Table(
                    "splits",
                    _SPLIT_COLUMNS,
                    splits,
                    f"split into pages of {size_text(kernel.form.page_size)}",
                ),
                Table("holes", _HOLE_COLUMNS, holes, "not mapped"),
            ),
            totals,
            notes,
            partial=bool(damage) or bool(unreadable),
        )


def _counted(form: PagingForm, view: View, where: AddressRange) -> Tuple[Dict[str, int], int]:
    """Number of entries with a frame by page size, and bytes whose page tables cannot be read."""
    counted: Dict[str, int] = {}
    unreadable = 0
    names = form.page_names
    for low, high, key in view.parts(where.start, where.end):
        level = (key & LEVEL_MASK) >> LEVEL_SHIFT
        if key & (UNREADABLE | OVER_LIMIT):
            unreadable += high - low + 1
        elif key & (MAPPED | NONZERO) and level in names:
            # The kernel counts entries, including those that are no longer present.
            entries = high - low + 1 >> form.shift(level)
            counted[names[level]] = counted.get(names[level], 0) + entries
    return counted, unreadable


def _runs(
    kernel: Kernel, view: View, where: AddressRange, offset: int, physical: Physical
) -> Iterator[RunRow]:
    for low, high, key in view.parts(where.start, where.end):
        if key & MAPPED and not key & (UNREADABLE | OVER_LIMIT):
            yield RunRow(
                start=Address(low),
                end=Address(high),
                size=Size(high - low + 1),
                page_size=page_text(kernel.form, key),
                rights=rights_text(key),
                caching=caching_text(kernel.form, key),
                physical=Address(low - offset & ALL),
                resources=physical.overlapping(low - offset & ALL, high - offset & ALL),
            )


def _alike(one: RunRow, other: RunRow) -> bool:
    return (one.page_size, one.rights, one.caching) == (other.page_size, other.rights, other.caching)


def _join(low: RunRow, high: RunRow) -> RunRow:
    names = tuple(dict.fromkeys((*low.resources, *high.resources)))
    return replace(low, end=high.end, size=Size(high.end - low.start + 1), resources=names)


class _Hole(NamedTuple):
    start: int
    end: int
    kept: bool


def _holes(view: View, where: AddressRange) -> List[_Hole]:
    """Ranges that are not mapped, and whether their entries still have frames."""
    found = (
        _Hole(low, high, bool(key & NONZERO))
        for low, high, key in view.parts(where.start, where.end)
        if not key & (MAPPED | UNREADABLE | OVER_LIMIT)
    )
    return merged(
        found,
        lambda one, other: one.kept == other.kept,
        lambda low, high: _Hole(low.start, high.end, low.kept),
    )


def _splits(
    form: PagingForm, view: View, where: AddressRange, offset: int, reasons: Reasons
) -> List[SplitRow]:
    """Blocks that are not one large page, with the reason; adjacent ones with the same reason share a row."""
    blocks: Dict[int, Block] = {}
    shift = form.shift(2)
    for low, high, key in view.parts(where.start, where.end):
        if (key & LEVEL_MASK) >> LEVEL_SHIFT == 1 and not key & (UNREADABLE | OVER_LIMIT):
            # One uniform range can span many blocks.
            for number in range(low >> shift, (high >> shift) + 1):
                blocks.setdefault(number, Block(form)).add(key)

    def rows() -> Iterator[SplitRow]:
        for number in sorted(blocks):
            if not blocks[number].rights:
                continue
            start = max(number << shift, where.start)
            end = min((number + 1 << shift) - 1, where.end)
            why = reasons.split(start, end, blocks[number])
            physical = Address(start - offset & ALL)
            yield SplitRow(Address(start), Address(end), Size(end - start + 1), physical, 1, why)

    return merged(
        rows(),
        lambda one, other: one.why == other.why,
        lambda low, high: replace(
            low, end=high.end, size=Size(high.end - low.start + 1), blocks=low.blocks + high.blocks
        ),
    )


def _ram_rows(
    kernel: Kernel, view: View, where: AddressRange, offset: int, physical: Physical
) -> List[RamRow]:
    rows, page = [], kernel.form.page_size
    for resource in physical.resources:
        if not resource.name.startswith(SYSTEM_RAM):
            continue
        start, end = offset + resource.start & ALL, min(offset + resource.end & ALL, where.end)
        # The kernel uses only whole pages.
        first, final = -(-start // page) * page, (end + 1) // page * page - 1
        if final < first:
            continue
        found = view.stretch(first, final)
        rows.append(
            RamRow(
                physical=Address(resource.start),
                physical_end=Address(resource.end),
                size=Size(resource.end - resource.start + 1),
                start=Address(start),
                end=Address(offset + resource.end & ALL),
                mapped=Size(found.mapped),
                missing=Size(final - first + 1 - found.mapped - found.unreadable),
                pages=found.pages,
            )
        )
    return rows


REGION = DirectMap()
