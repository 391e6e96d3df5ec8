# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every kernel virtual address of a page of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Tuple

from kvintro.arch.x86_64 import ALL, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import AddressRange, Placement, Unknown
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, FrameTree
from kvintro.queries.roots import kernel_root
from kvintro.regions import Root

#: Stretches of one root; damaged tables can map a page in millions of places.
_MAX_FOUND = 1 << 16


@dataclass(frozen=True)
class Alias:
    """A stretch of address space in which every page is the page asked for.

    :ivar virtual: where the byte asked for is found first.
    :ivar count: how often the stretch maps it, ``page_size`` apart.
    :ivar key: see :mod:`kvintro.paging.tree`.
    :ivar root: who maps it.
    """

    virtual: int
    count: int
    page_size: int
    key: int
    root: str


@dataclass(frozen=True)
class Aliases:
    """What was found, ascending by root and address.

    :ivar problems: roots that could not be looked through, and why.
    :ivar complete: whether all page tables were there to be read.
    """

    found: Tuple[Alias, ...]
    problems: Tuple[str, ...]
    complete: bool


def aliases(kernel: Kernel, physical: int) -> Aliases:
    """All kernel aliases of the page that holds a physical address."""
    found: List[Alias] = []
    problems: List[str] = []
    complete = True
    for root, parts in _roots(kernel, problems):
        tree = FrameTree(
            kernel.read_physical,
            kernel.geometry,
            root.table,
            physical & ~(PAGE_SIZE - 1),
            table_limit=kernel.table_limit,
        )
        for part in parts:
            stretches = tree.ranges(part.start, part.end).matching(((MAPPED, MAPPED),), _MAX_FOUND + 1)
            if len(stretches) > _MAX_FOUND:
                complete = False
                problems.append(f"{root.owner} maps it more than {_MAX_FOUND} times; the rest is left out")
            for start, end, key in stretches[:_MAX_FOUND]:
                level = (key & LEVEL_MASK) >> LEVEL_SHIFT
                size = 1 << kernel.geometry.shift(level)
                # A large page may stick out of the part asked for; it starts where its size says.
                base = start & ~(size - 1)
                count = -(-(end + 1 - base) // size)
                found.append(Alias(base | physical & (size - 1), count, size, key, root.owner))
        if tree.unreadable_tables or tree.limited:
            complete = False
            problems.append(f"some page tables of {root.owner} could not be read")
    return Aliases(tuple(found), tuple(problems), complete)


def _roots(kernel: Kernel, problems: List[str]) -> Iterator[Tuple[Root, List[AddressRange]]]:
    """Roots, and what each maps that no other does."""
    geometry = kernel.geometry
    kernel_half = AddressRange(geometry.guard_hole.end + 1, ALL)
    yield kernel_root(kernel), [kernel_half]
    for region in kernel.regions:
        place = kernel.locate(region)
        if isinstance(place, Unknown):
            problems.append(f"{region.name}: {place.reason}")
        if (
            not isinstance(place, Placement)
            or region.kind == "hole"
            or place.range.start <= geometry.user.end
        ):
            continue
        try:
            roots = region.roots(kernel)
        except Unavailable as error:
            problems.append(f"{region.name}: {error.what}")
            continue
        for root in roots:
            if root.table == kernel.root.value:
                continue
            parts = [place.range]
            if region.key == "efi":
                # Firmware also sees memory at its physical address (efi_64.c:efi_map_region).
                parts.insert(0, geometry.user)
            yield root, parts
