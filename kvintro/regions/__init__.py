# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per region of the address space.

To add a region, add a file with a ``REGION``, an instance of a subclass of :class:`Region`. The layout and
everything else that lists regions then finds it. Regions that every architecture can have are here; those of
one architecture are in its own package (``kvintro/arch/NAME/regions``).
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, Protocol, Sequence, Tuple

from kvintro import kernels
from kvintro.entry_points import REGIONS, added
from kvintro.kernels import Regions
from kvintro.model import (
    Address,
    AddressRange,
    Asked,
    Column,
    Contents,
    Located,
    Placement,
    Randomised,
    Root,
    Size,
    Table,
)
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED
from kvintro.readers.mapped import View, caching_text, rights_text
from kvintro.readers.neighbours import add_merged

if TYPE_CHECKING:
    from kvintro.arch import Architecture
    from kvintro.kernels import Kernel


@dataclass(frozen=True)
class RangeRow:
    """A range with uniform page-table entries."""

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


class Region(kernels.Region):
    """Base class of the regions."""

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Contents of a region that is present on this kernel.

        By default these are the ranges that the page tables map. Regions whose contents the kernel tracks
        return more.

        :raises Unavailable: the source does not contain them.
        """
        return self.mapped(kernel)

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """What KASLR randomises in the region, from the architecture's ``kaslr`` module.

        :raises Unavailable: the source does not contain it.
        """
        draw = _draws(kernel.arch.package).get(self.key)
        return () if draw is None else draw(kernel)

    def mapped(self, kernel: Kernel) -> Contents:
        """Ranges of the region that the page tables map.

        :raises Unavailable: its bounds, or the roots that map it, are unknown.
        """
        found = kernel.place(self)
        roots = self.roots(kernel)
        rows = [row for root in roots for row in mapped_ranges(kernel, root, found.range)]
        notes = () if roots else ("page tables are not read for this: the kernel maps nothing here",)
        totals = {"mapped": Size(sum(row.size for row in rows))}
        return Contents((Table("ranges", RANGE_COLUMNS, rows),), totals, notes)


def mapped_ranges(kernel: Kernel, root: Root, where: AddressRange) -> List[RangeRow]:
    """Ranges that a root maps between two addresses, adjacent ones with the same attributes in one row."""
    rows: List[RangeRow] = []
    for low, high, key in View.of(kernel, where.start, where.end, root.table).parts(where.start, where.end):
        if not key & MAPPED:
            continue
        page = Size(1 << kernel.form.shift((key & LEVEL_MASK) >> LEVEL_SHIFT))
        row = RangeRow(
            Address(low),
            Address(high),
            Size(high - low + 1),
            page,
            rights_text(key),
            caching_text(kernel.form, key),
            root.owner,
        )
        add_merged(rows, row, _alike, _join)
    return rows


def _alike(one: RangeRow, other: RangeRow) -> bool:
    return (one.page_size, one.rights, one.caching) == (other.page_size, other.rights, other.caching)


def _join(low: RangeRow, high: RangeRow) -> RangeRow:
    return replace(low, end=high.end, size=Size(high.end - low.start + 1))


def fixed_place(found: AddressRange, note: str = "") -> Placement:
    """Placement of a region whose bounds follow from the paging mode alone."""
    return Placement(found, "constant", default_start=found.start, note=note)


@cache
def _draws(package: str) -> Mapping[str, Callable[[Kernel], Sequence[Randomised]]]:
    """``DRAWS`` of an architecture's ``kaslr`` module; empty if it has no such module."""
    try:
        found: Mapping[str, Callable[[Kernel], Sequence[Randomised]]]
        found = importlib.import_module(f"{package}.kaslr").DRAWS
        return found
    except ModuleNotFoundError as error:
        if error.name != f"{package}.kaslr":
            raise
        return {}


@cache
def _modules(package: str) -> Tuple[Any, ...]:
    try:
        path = importlib.import_module(package).__path__
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        return ()
    return tuple(
        importlib.import_module(f"{package}.{info.name}")
        for info in pkgutil.iter_modules(path)
        if not info.ispkg
    )


class AddedRegion(Protocol):
    """A region of another package: an instance of a subclass of :class:`Region`, with the key as entry point.

    :ivar interface: ``1``.
    """

    interface: int
    key: str
    name: str
    macro: str

    def locate(self, kernel: Kernel) -> Located:
        """Placement on this kernel, or why this kernel has none."""


def _added(taken: Tuple[str, ...]) -> Mapping[str, Region]:
    """Regions of other packages by key."""
    regions = added(REGIONS, ("key", "name", "macro", "locate", "contents", "located"), taken)
    return {region.key: region for region in regions.values() if region.key not in taken}


def regions_of(arch: Architecture) -> Regions:
    """All regions of an architecture: those with a file here, and those in the architecture's own package.

    A region of the architecture replaces the one here that has the same key.
    """
    found = {
        module.REGION.key: module.REGION
        for package in (__name__, f"{arch.package}.regions")
        for module in _modules(package)
        if hasattr(module, "REGION")
    }
    found = {**_added(tuple(sorted(found))), **found}
    return Regions(sorted(found.values(), key=lambda region: (region.row, region.key)))
