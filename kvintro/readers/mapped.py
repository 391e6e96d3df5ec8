# SPDX-License-Identifier: LGPL-2.1-or-later
"""State of an address range in the page tables: how much is mapped, with which rights, by which pages.

Everything that lists the contents of a region uses this for each part, because a structure that describes a
mapping can disagree with the page tables.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.model import AddressRange
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_READ,
    EFFECTIVE_USER,
    EFFECTIVE_USER_EXEC,
    EFFECTIVE_WRITE,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    OVER_LIMIT,
    UNREADABLE,
)
from kvintro.paging.broken import MISSING
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.arch.form import PagingForm
    from kvintro.kernels import Kernel
    from kvintro.paging import Ranges


def rights_text(key: int) -> str:
    """Effective rights of a range over all levels: ``rw-``, ``r-x``; with ``u`` if user mode has them too."""
    return (
        ("r" if key & EFFECTIVE_READ else "-")
        + ("w" if key & EFFECTIVE_WRITE else "-")
        + ("x" if key & (EFFECTIVE_EXEC | EFFECTIVE_USER_EXEC) else "-")
        + ("u" if key & EFFECTIVE_USER else "")
    )


def caching_text(form: PagingForm, key: int) -> str:
    """The memory type by its name in the kernel: ``WB``, ``UC-``, ``WC``..."""
    return form.memory_type(key, (key & LEVEL_MASK) >> LEVEL_SHIFT)


def page_text(form: PagingForm, key: int) -> str:
    """Size of the pages that map a range."""
    return form.page_name((key & LEVEL_MASK) >> LEVEL_SHIFT)


def ranges_of(kernel: Kernel, start: int, end: int, root: Optional[int] = None) -> Ranges:
    """Ranges between two inclusive addresses in the tables of a root, by default the kernel's own."""
    if root is None or root == kernel.root.value:
        first = int(kernel.kernel_ranges.starts[0])
        if start >= first:
            return kernel.kernel_ranges.clip(start, end)
    return kernel.tree(root).ranges(start, end)


def unread(kernel: Kernel, start: int, end: int, root: Optional[int] = None) -> str:
    """Why it is unknown what a root maps between two inclusive addresses; empty if it is known."""
    missing = ranges_of(kernel, start, end, root).select(UNREADABLE | OVER_LIMIT)
    if missing:
        size = sum(high - low + 1 for low, high, _ in missing)
        what = "are damaged" if _is_damaged(kernel, missing, root) else "are not in this source"
        return f"page tables of {size_text(size)} {what}"
    # A table of zeros looks like an empty one, and can reach beyond the window in which it was found broken.
    broken = {found.table: found for found in kernel.source.broken_tables}
    for step in kernel.walk(start).steps if broken and root is None else ():
        table = step.entry_address & -kernel.form.table_size(step.level)
        if table in broken:
            return broken[table].text
    if root in (None, kernel.root.value) and not kernel.kernel_ranges.any(MAPPED):
        return "the kernel's page tables map nothing at all: their memory was overwritten, or reads as zeros"
    return ""


def _is_damaged(kernel: Kernel, missing: Sequence[Tuple[int, int, int]], root: Optional[int]) -> bool:
    """Whether unusable tables are in the source, and so are damaged."""
    for broken in kernel.source.broken_tables:
        if any(low <= broken.end and broken.start <= high for low, high, _ in missing):
            return broken.why != MISSING
    tree = kernel.tree(root)
    return tree.nonsense_tables > 0 and not tree.unreadable_tables


@dataclass(frozen=True)
class Stretch:
    """What is mapped from one address to another.

    :ivar mapped: number of mapped bytes.
    :ivar unreadable: bytes whose tables are not in the source.
    :ivar pages: number of mapping entries by page size, including those that extend beyond the addresses.
    :ivar rights: rights that occur, in order of address.
    :ivar caching: memory types that occur.
    """

    mapped: int = 0
    unreadable: int = 0
    pages: Mapping[str, int] = field(default_factory=dict)
    rights: Tuple[str, ...] = ()
    caching: Tuple[str, ...] = ()


class View:
    """The ranges of one root, prepared for many lookups.

    :param ranges: as :meth:`kvintro.paging.Tree.ranges` returns them.
    :param form: format of the tables.
    """

    def __init__(self, ranges: Ranges, form: PagingForm) -> None:
        self._form = form
        self._names = form.page_names
        self._starts: List[int] = ranges.starts.tolist()
        self._keys: List[int] = ranges.keys.tolist()
        self._end = ranges.end
        #: By key: log2 and name of the size of the pages, rights, memory type.
        self._kinds: Dict[int, Tuple[int, str, str, str]] = {}
        #: Stretches that were returned, by their values. Many are equal, and share their memory.
        self._known: Dict[Tuple[object, ...], Stretch] = {}

    def _kind(self, key: int) -> Tuple[int, str, str, str]:
        found = self._kinds.get(key)
        if found is None:
            level = (key & LEVEL_MASK) >> LEVEL_SHIFT
            found = (
                *(self._form.shift(level), self._names[level]),
                *(rights_text(key), caching_text(self._form, key)),
            )
            self._kinds[key] = found
        return found

    @classmethod
    def of(cls, kernel: Kernel, start: int, end: int, root: Optional[int] = None) -> View:
        """The view of two inclusive addresses in the tables of a root, by default the kernel's own."""
        return cls(ranges_of(kernel, start, end, root), kernel.form)

    def parts(self, start: int, end: int) -> Iterator[Tuple[int, int, int]]:
        """(start, end inclusive, key) of each range between two inclusive addresses."""
        if not self._starts or end < self._starts[0]:
            return
        index = max(bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] <= end:
            following = self._starts[index + 1] - 1 if index + 1 < len(self._starts) else self._end
            if following >= start:
                yield max(self._starts[index], start), min(following, end), self._keys[index]
            index += 1

    def page_at(self, address: int) -> AddressRange:
        """The page that maps an address; the address alone if none does."""
        for _, _, key in self.parts(address, address):
            if key & MAPPED:
                size = 1 << self._kind(key)[0]
                return AddressRange(address & -size, address | size - 1)
        return AddressRange(address, address)

    def stretch(self, start: int, end: int) -> Stretch:
        """Sum up what is mapped between two inclusive addresses."""
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
            shift, name, right, kind = self._kind(key)
            pages[name] = pages.get(name, 0) + (high >> shift) - (low >> shift) + 1
            rights[right] = caching[kind] = None
        values = (mapped, unreadable, tuple(pages.items()), tuple(rights), tuple(caching))
        known = self._known.get(values)
        if known is None:
            ordered = {name: pages[name] for name in self._names.values() if name in pages}
            known = self._known[values] = Stretch(mapped, unreadable, ordered, *values[3:])
        return known
