# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per region of the address space.

A region is added by adding a file here with a ``REGION``, an instance of a subclass of :class:`Region`: the
layout, and whatever else lists regions, finds it by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, List, Mapping, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.model import Address, AddressRange, Column, Located, NoRange, Placement, Size, Table, Unknown
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED
from kvintro.readers.mapped import View, caching_text, rights_text

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.readers.randomness import Randomised


@dataclass(frozen=True)
class Root:
    """A page-table root under which a region is mapped.

    :ivar table: physical address of the root table.
    :ivar owner: whose root it is, for people: ``init_top_pgt``, ``efi_mm``, ``pid 1``.
    """

    table: int
    owner: str


@dataclass(frozen=True)
class Linear:
    """A rule by which a region translates without page tables: physical = virtual - offset, modulo 2^64.

    It says where the kernel puts things, not what is mapped: the page tables have the last word.

    :ivar range: virtual addresses for which it holds.
    :ivar whole: False if the range ends where the mappings stop following the rule, as nothing else tells.
    """

    range: AddressRange
    offset: int
    whole: bool = True


@dataclass(frozen=True)
class Asked:
    """What of a region's contents is wanted; a region may use it to do less, and need not.

    :ivar within: addresses of interest.
    :ivar pid: one process, of regions that differ from process to process.
    """

    within: Optional[AddressRange] = None
    pid: Optional[int] = None


@dataclass(frozen=True)
class Contents:
    """What is inside a region.

    :ivar tables: typed rows; the first table is the region's own, others sum it up or look at it otherwise.
        Columns are those of text.
    :ivar totals: what the whole comes to, by name.
    :ivar notes: what a reader should know: disagreements with the page tables, damaged structures.
    :ivar partial: something that should be here could not be read.
    :ivar ranged: the rows are those of the range asked for, in the region's own sense of it.
    """

    tables: Sequence[Table]
    totals: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    partial: bool = False
    ranged: bool = False


@dataclass(frozen=True)
class RangeRow:
    """A range that the page tables map all alike."""

    start: Address
    end: Address
    size: Size
    page_size: Size
    rights: str
    caching: str
    root: str


RANGE_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("page_size", "pages", "right"),
    Column("rights", "rights"),
    Column("caching", "caching"),
    Column("root", "by"),
)


class Region:
    """A row of the memory map: where it lies on a kernel, and which tables map it."""

    #: Name in JSON and on the command line.
    key: str
    #: What people call it.
    name: str
    #: ``region``, or ``hole`` for what nothing may ever live in.
    kind = "region"
    #: The kernel's macro or variable that defines the start.
    macro: str
    #: Place among the rows of mm.rst, for lists in which nothing else gives an order.
    row = 100
    #: Architecture (:attr:`kvintro.arch.Architecture.name`) that has it.
    arch = "x86-64"
    #: Whether the bounds are constants of the paging mode. Where what was read contradicts them, they win.
    fixed = False
    #: What one of ``roots`` is called in a count.
    root_noun = ("root", "roots")

    def locate(self, kernel: Kernel) -> Located:
        """Where it lies on this kernel, or why this kernel has none.

        :raises Unavailable: the source does not tell.
        """
        raise NotImplementedError

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        """The roots to look under for what is mapped in it.

        :raises Unavailable: the source does not tell.
        """
        return (Root(kernel.root.value, "init_top_pgt"),)

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """The rule by which it translates; None if only page tables tell.

        :raises Unavailable: the source does not tell.
        """
        return None

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """What is inside, for regions that lie somewhere on this kernel.

        By default what the page tables map there; regions whose contents the kernel keeps account of say
        more.

        :raises Unavailable: the source does not tell.
        """
        return self.mapped(kernel)

    def mapped(self, kernel: Kernel) -> Contents:
        """What the page tables map in it.

        :raises Unavailable: where it lies, or under which roots it is mapped, is not known.
        """
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        roots = self.roots(kernel)
        rows = [row for root in roots for row in mapped_ranges(kernel, root, found.range)]
        notes = (
            () if roots else ("no page tables are looked into for this: nothing of the kernel's lives here",)
        )
        totals = {"mapped": Size(sum(row.size for row in rows))}
        return Contents((Table("ranges", RANGE_COLUMNS, rows),), totals, notes)

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """What of it KASLR draws at random, empty for what never moves.

        :raises Unavailable: the source does not tell.
        """
        return ()

    def located(self, kernel: Kernel) -> Located:
        """:meth:`locate`, with what cannot be read as :class:`~kvintro.model.Unknown`."""
        try:
            return self.locate(kernel)
        except Unavailable as error:
            return Unknown(error.what)
        except NoRange as error:
            return Unknown(f"its bounds make no sense: {error}")


def mapped_ranges(kernel: Kernel, root: Root, where: AddressRange) -> List[RangeRow]:
    """What a root maps in a stretch, neighbours that are alike in one row."""
    rows: List[RangeRow] = []
    for low, high, key in View.of(kernel, where.start, where.end, root.table).parts(where.start, where.end):
        if not key & MAPPED:
            continue
        page = Size(1 << 12 + 9 * ((key & LEVEL_MASK) >> LEVEL_SHIFT) - 9)
        row = RangeRow(
            Address(low),
            Address(high),
            Size(high - low + 1),
            page,
            rights_text(key),
            caching_text(key),
            root.owner,
        )
        last = rows[-1] if rows else None
        if (
            last
            and last.end + 1 == low
            and (last.page_size, last.rights, last.caching)
            == (
                page,
                row.rights,
                row.caching,
            )
        ):
            rows[-1] = replace(last, end=row.end, size=Size(high - last.start + 1))
        else:
            rows.append(row)
    return rows


def fixed_place(found: AddressRange, note: str = "") -> Placement:
    """The placement of a region whose bounds follow from the paging mode alone."""
    return Placement(found, "constant", default_start=found.start, note=note)


@cache
def _modules() -> Tuple[Any, ...]:
    return tuple(
        importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)
    )


class Regions(Tuple[Region, ...]):
    """Regions in the order of their rows, each also an attribute by its key: ``regions.vmalloc``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Region:
        for region in self:
            if region.key == name:
                return region
        raise AttributeError(f"there is no region {name!r}, only {', '.join(r.key for r in self)}")

    def __dir__(self) -> List[str]:
        return [*super().__dir__(), *(region.key for region in self)]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))


def regions_of(arch: Any) -> Regions:
    """All regions of an architecture: those with a file here, and those its own file brings."""
    found = [m.REGION for m in _modules() if hasattr(m, "REGION") and m.REGION.arch == arch.name]
    return Regions(sorted((*found, *arch.regions), key=lambda region: (region.row, region.key)))
