# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every kernel virtual address of a page of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import AddressRange, Placement, Root, Unknown
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, FrameTree
from kvintro.queries.roots import kernel_root

#: Maximum number of ranges per root; damaged tables can map a page in millions of places.
_MAX_FOUND = 1 << 16


@dataclass(frozen=True)
class Alias:
    """A range of address space in which every page is the requested page.

    :ivar virtual: first address of the requested byte.
    :ivar count: number of times that the range maps it, ``page_size`` apart.
    :ivar key: see :mod:`kvintro.paging.tree`.
    :ivar root: root that maps the range.
    """

    virtual: int
    count: int
    page_size: int
    key: int
    root: str


@dataclass(frozen=True)
class Aliases:
    """Aliases, ascending by root and address.

    :ivar problems: roots that could not be searched, and why.
    :ivar complete: whether all page tables could be read.
    """

    found: Tuple[Alias, ...]
    problems: Tuple[str, ...]
    complete: bool


def aliases(kernel: Kernel, physical: int) -> Aliases:
    """Find all kernel aliases of the page that contains a physical address."""
    found: List[Alias] = []
    problems: List[str] = []
    complete = True
    for root, parts in _roots(kernel, problems):
        tree = FrameTree(
            kernel.read_physical,
            kernel.form,
            root.table,
            physical & -kernel.form.page_size,
            table_limit=kernel.table_limit,
        )
        for part in parts:
            stretches = tree.ranges(part.start, part.end).matching(((MAPPED, MAPPED),), _MAX_FOUND + 1)
            if len(stretches) > _MAX_FOUND:
                complete = False
                problems.append(f"{root.owner} maps it more than {_MAX_FOUND} times; the rest is not shown")
            for start, end, key in stretches[:_MAX_FOUND]:
                level = (key & LEVEL_MASK) >> LEVEL_SHIFT
                size = 1 << kernel.form.shift(level)
                # A large page may extend beyond the searched part; its size determines its start.
                base = start & ~(size - 1)
                count = -(-(end + 1 - base) // size)
                found.append(Alias(base | physical & (size - 1), count, size, key, root.owner))
        if tree.unreadable_tables or tree.limited:
            complete = False
            problems.append(f"some page tables of {root.owner} could not be read")
    return Aliases(tuple(found), tuple(problems), complete)


def _roots(kernel: Kernel, problems: List[str]) -> Iterator[Tuple[Root, List[AddressRange]]]:
    """Roots, each with the ranges that no other root maps."""
    form = kernel.form
    yield kernel_root(kernel), [form.kernel]
    for region in kernel.regions:
        place = kernel.locate(region)
        if isinstance(place, Unknown):
            problems.append(f"{region.name}: {place.reason}")
        if not isinstance(place, Placement) or region.kind == "hole" or place.range.start in form.user:
            continue
        try:
            roots = region.roots(kernel)
        except Unavailable as error:
            problems.append(f"{region.name}: {error.what}")
            continue
        for root in roots:
            if root.table != kernel.root.value:
                yield root, [*region.also_mapped(kernel), place.range]
