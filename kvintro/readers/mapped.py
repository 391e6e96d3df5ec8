# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the page tables say of a stretch of addresses: how much is mapped, with what rights, by what pages.

Whatever lists the contents of a region asks here for each of them, since a structure that names a mapping and
the table that makes it can disagree.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import PAT, PAT_LARGE, PCD, PWT
from kvintro.arch.x86_64_entry import MEMORY_TYPES
from kvintro.paging import (
    EFFECTIVE_NX,
    EFFECTIVE_RW,
    EFFECTIVE_USER,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    OVER_LIMIT,
    TABLE_SIZE,
    UNREADABLE,
)
from kvintro.paging.broken import MISSING
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.paging import Ranges

PAGE_NAMES = {1: "4K", 2: "2M", 3: "1G"}


def rights_text(key: int) -> str:
    """What may be done with a range, all levels together: ``rw-``, ``r-x``; ``u`` for user mode, too."""
    return (
        "r"
        + ("w" if key & EFFECTIVE_RW else "-")
        + ("-" if key & EFFECTIVE_NX else "x")
        + ("u" if key & EFFECTIVE_USER else "")
    )


def caching_text(key: int) -> str:
    """The memory type, as Linux programs the PAT: ``WB``, ``UC-``, ``WC``..."""
    large = (key & LEVEL_MASK) >> LEVEL_SHIFT > 1
    third = key & (PAT_LARGE if large else PAT)
    return MEMORY_TYPES[bool(key & PWT) | bool(key & PCD) << 1 | bool(third) << 2]


def ranges_of(kernel: Kernel, start: int, end: int, root: Optional[int] = None) -> Ranges:
    """A stretch, both ends inclusive, in the tables of a root, by default the kernel's own."""
    if root is None or root == kernel.root.value:
        first = int(kernel.kernel_ranges.starts[0])
        if start >= first:
            return kernel.kernel_ranges.clip(start, end)
    return kernel.tree(root).ranges(start, end)


def unread(kernel: Kernel, start: int, end: int, root: Optional[int] = None) -> str:
    """Why it is not known what a root maps in a stretch, both ends inclusive; empty if it is known."""
    missing = ranges_of(kernel, start, end, root).select(UNREADABLE | OVER_LIMIT)
    if missing:
        size = sum(high - low + 1 for low, high, _ in missing)
        what = "are damaged" if _is_damaged(kernel, missing, root) else "are not in this source"
        return f"page tables of {size_text(size)} {what}"
    # A table of zeros looks like one that maps nothing, and it can reach beyond the window it was judged by.
    broken = {found.table: found for found in kernel.source.broken_tables}
    for step in kernel.walk(start).steps if broken and root is None else ():
        if step.entry_address & -TABLE_SIZE in broken:
            return broken[step.entry_address & -TABLE_SIZE].text
    if root in (None, kernel.root.value) and not kernel.kernel_ranges.any(MAPPED):
        return "the kernel's page tables map nothing at all: their memory was overwritten, or reads as zeros"
    return ""


def _is_damaged(kernel: Kernel, missing: Sequence[Tuple[int, int, int]], root: Optional[int]) -> bool:
    """Whether tables that cannot be used are in the source."""
    for broken in kernel.source.broken_tables:
        if any(low <= broken.end and broken.start <= high for low, high, _ in missing):
            return broken.why != MISSING
    tree = kernel.tree(root)
    return tree.nonsense_tables > 0 and not tree.unreadable_tables


@dataclass(frozen=True)
class Stretch:
    """What is mapped from one address to another.

    :ivar mapped: bytes that some entry maps.
    :ivar unreadable: bytes whose tables are not in the source.
    :ivar pages: number of entries that map, by page size; a page that sticks out counts too.
    :ivar rights: the rights that occur, in the order of addresses.
    :ivar caching: the memory types that occur.
    """

    mapped: int = 0
    unreadable: int = 0
    pages: Mapping[str, int] = field(default_factory=dict)
    rights: Tuple[str, ...] = ()
    caching: Tuple[str, ...] = ()


class View:
    """The ranges of one root, ready to be asked about many stretches.

    :param ranges: as :meth:`kvintro.paging.Tree.ranges` returns them.
    """

    def __init__(self, ranges: Ranges) -> None:
        self._starts: List[int] = ranges.starts.tolist()
        self._keys: List[int] = ranges.keys.tolist()
        self._end = ranges.end

    @classmethod
    def of(cls, kernel: Kernel, start: int, end: int, root: Optional[int] = None) -> View:
        """The view of a stretch in the tables of a root, by default the kernel's own."""
        return cls(ranges_of(kernel, start, end, root))

    def parts(self, start: int, end: int) -> Iterator[Tuple[int, int, int]]:
        """(start, end inclusive, key) of each range between two addresses, both inclusive."""
        if not self._starts or end < self._starts[0]:
            return
        index = max(bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] <= end:
            following = self._starts[index + 1] - 1 if index + 1 < len(self._starts) else self._end
            if following >= start:
                yield max(self._starts[index], start), min(following, end), self._keys[index]
            index += 1

    def stretch(self, start: int, end: int) -> Stretch:
        """What is mapped between two addresses, both inclusive."""
        mapped = unreadable = 0
        pages: Dict[str, int] = {}
        rights: Dict[str, None] = {}
        caching: Dict[str, None] = {}
        for low, high, key in self.parts(start, end):
            if not key & MAPPED:
                if key & (UNREADABLE | OVER_LIMIT):
                    unreadable += high - low + 1
                continue
            mapped += high - low + 1
            level = (key & LEVEL_MASK) >> LEVEL_SHIFT
            shift = 12 + 9 * (level - 1)
            name = PAGE_NAMES[level]
            pages[name] = pages.get(name, 0) + (high >> shift) - (low >> shift) + 1
            rights[rights_text(key)] = None
            caching[caching_text(key)] = None
        ordered = {name: pages[name] for name in PAGE_NAMES.values() if name in pages}
        return Stretch(mapped, unreadable, ordered, tuple(rights), tuple(caching))
