# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mapped bytes of each region by page size, rights and memory type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Placement, Unknown
from kvintro.paging import MAPPED, OVER_LIMIT, UNREADABLE
from kvintro.queries.placements import own_parts
from kvintro.readers.mapped import caching_text, page_text, rights_text


@dataclass(frozen=True)
class Mapped:
    """The part of a region with one page size, one set of rights and one memory type.

    :ivar rights: effective rights over all levels, as :func:`kvintro.readers.mapped.rights_text` writes them.
    :ivar ranges: number of ranges.
    :ivar size: size in bytes.
    """

    region: str
    page_size: str
    rights: str
    caching: str
    ranges: int
    size: int


def rights_of(kernel: Kernel) -> Tuple[List[Mapped], List[str]]:
    """One row per region and combination, in order of address, and notes on what could not be read.

    A page in a region within another one counts for the inner region only.
    """
    found: List[Mapped] = []
    problems: List[str] = []
    located = [(region, kernel.locate(region)) for region in kernel.regions]
    problems += [
        f"{r.name}: its place is not known: {p.reason}" for r, p in located if isinstance(p, Unknown)
    ]
    placed = [(region, place) for region, place in located if isinstance(place, Placement)]
    for region, _ in sorted(placed, key=lambda item: item[1].range.start):
        sums: Dict[Tuple[str, str, str], List[int]] = {}
        try:
            roots = region.roots(kernel)
        except Unavailable as error:
            problems.append(f"{region.name}: {error.what}")
            continue
        parts = own_parts(kernel, region)
        for root, where in ((root, part) for root in roots for part in parts):
            if root.table == kernel.root.value:
                if where.start not in kernel.form.kernel:
                    continue
                ranges = kernel.kernel_ranges.clip(where.start, where.end)
            else:
                ranges = kernel.tree(root.table).ranges(where.start, where.end)
            if ranges.any(UNREADABLE | OVER_LIMIT):
                problems.append(f"{region.name}: some page tables are not in this source")
            for low, high, key in ranges.select(MAPPED):
                page = page_text(kernel.form, key)
                total = sums.setdefault((page, rights_text(key), caching_text(kernel.form, key)), [0, 0])
                total[0] += 1
                total[1] += high - low + 1
        for (page, rights, caching), (count, size) in sorted(sums.items(), key=lambda item: -item[1][1]):
            found.append(Mapped(region.key, page, rights, caching, count, size))
    return found, list(dict.fromkeys(problems))
