# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may be done where: mapped bytes of every region by page size and rights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Tuple

from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Placement, Unknown
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, OVER_LIMIT, UNREADABLE
from kvintro.readers.mapped import PAGE_NAMES, caching_text, rights_text


@dataclass(frozen=True)
class Mapped:
    """What a region maps with one page size, one set of rights and one memory type.

    :ivar rights: all levels together, as :func:`kvintro.readers.mapped.rights_text` writes them.
    :ivar ranges: stretches that are mapped alike.
    :ivar size: bytes.
    """

    region: str
    page_size: str
    rights: str
    caching: str
    ranges: int
    size: int


def rights_of(kernel: Kernel) -> Tuple[List[Mapped], List[str]]:
    """Regions in the order of addresses, and what could not be looked at."""
    found: List[Mapped] = []
    problems: List[str] = []
    located = [(region, kernel.locate(region)) for region in kernel.regions]
    problems += [
        f"{r.name}: where it lies is not known: {p.reason}" for r, p in located if isinstance(p, Unknown)
    ]
    placed = [(region, place) for region, place in located if isinstance(place, Placement)]
    for region, place in sorted(placed, key=lambda item: item[1].range.start):
        sums: Dict[Tuple[str, str, str], List[int]] = {}
        try:
            roots = region.roots(kernel)
        except Unavailable as error:
            problems.append(f"{region.name}: {error.what}")
            continue
        for root in roots:
            where = place.range
            if root.table == kernel.root.value:
                if where.start <= kernel.geometry.guard_hole.end:
                    continue
                ranges = kernel.kernel_ranges.clip(where.start, where.end)
            else:
                ranges = kernel.tree(root.table).ranges(where.start, where.end)
            if ranges.any(UNREADABLE | OVER_LIMIT):
                problems.append(f"{region.name}: some page tables are not in this source")
            for low, high, key in ranges.select(MAPPED):
                page = PAGE_NAMES[(key & LEVEL_MASK) >> LEVEL_SHIFT]
                total = sums.setdefault((page, rights_text(key), caching_text(key)), [0, 0])
                total[0] += 1
                total[1] += high - low + 1
        for (page, rights, caching), (count, size) in sorted(sums.items(), key=lambda item: -item[1][1]):
            found.append(Mapped(region.key, page, rights, caching, count, size))
    return found, list(dict.fromkeys(problems))
