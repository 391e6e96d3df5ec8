# SPDX-License-Identifier: LGPL-2.1-or-later
"""A page-table tree in the format of the kernel's own ptdump.

``note_page()`` is similar in every architecture: it merges adjacent entries that it considers equal into one
line, and begins a new line at each heading. This module implements that, reduced to the calls that matter.
The architecture decides when entries are equal, and how headings and flags are named: its ``ptdump`` module
has a subclass of :class:`Dump`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import chain
from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type

from kvintro.arch import part
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, AddressRange, Placement, Root
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, OVER_LIMIT, UNREADABLE, Tree


class Line(NamedTuple):
    """One line of the dump.

    :ivar end: exclusive; 0 at the top of the address space.
    :ivar key: a range's key after :meth:`Dump.noted`.
    :ivar marker: heading above the line.
    """

    start: int
    end: int
    key: int
    marker: str

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.end - self.start & ALL

    @property
    def lost(self) -> bool:
        """Whether its table could not be read."""
        return bool(self.key & (UNREADABLE | OVER_LIMIT))


class Shown(NamedTuple):
    """Content of a line.

    :ivar level: the kernel's name of the level.
    :ivar state: ``present``, ``not-present``, ``not-in-dump`` or ``over-limit``.
    :ivar flags: names of the flags that ptdump shows.
    :ivar effective: effective rights of all levels, as names of the flags that grant or remove them.
    """

    level: str
    state: str
    flags: Tuple[str, ...] = ()
    effective: Tuple[str, ...] = ()


class Dump(ABC):
    """The kernel's ptdump of one root's tables. An architecture's ``ptdump`` has a subclass as ``DUMP``.

    :ivar headings: ``address_markers[]`` of this kernel's build, ascending.
    :ivar missing: headings whose address is unknown, with the reason.
    """

    #: Maximum number of headings that one call of ``note_page()`` prints. A heading without lines of its own
    #: is joined with the next one's name by "; ".
    most_headings = 1
    #: Flags of an entry that distinguish lines. The rights of all levels together are not among them, unless
    #: a subclass has another :meth:`noted`.
    compared = 0

    def __init__(self, kernel: Kernel, root: Root) -> None:
        self.kernel = kernel
        self.root = root
        self.headings: List[Tuple[int, str]] = []
        self.missing: List[str] = []
        self.find_headings()

    @abstractmethod
    def find_headings(self) -> None:
        """Fill ``headings`` and ``missing``. The first heading is where the walk begins."""

    def noted(self, ranges: Iterable[Tuple[int, int, int]]) -> Iterator[Tuple[int, int, int]]:
        """Return the calls of ``note_page()``.

        :param ranges: (start, end inclusive, key) of all that is walked, ascending; for keys see
            :mod:`kvintro.paging.tree`.
        :return: the same ranges, whose keys keep only the bits that distinguish lines, including the level,
            OVER_LIMIT and UNREADABLE. Ranges without a call are left out.
        """
        compared = self.compared | LEVEL_MASK | OVER_LIMIT | UNREADABLE
        return ((start, end, key & compared) for start, end, key in ranges)

    @abstractmethod
    def shown(self, key: int) -> Shown:
        """Content of a line for a key of :meth:`noted`."""

    def physical(self, lines: Sequence[Line]) -> Sequence[Optional[int]]:
        """The physical address that the kernel prints in each line; None if it prints none."""
        return [None] * len(lines)

    @abstractmethod
    def writable_and_executable(self, key: int) -> bool:
        """Whether a key of :meth:`noted` is both writable and executable, with all levels combined."""

    def tree(self) -> Tree:
        """A tree for :meth:`noted`."""
        return self.kernel.new_tree(self.root.table)

    def parts(self) -> Sequence[AddressRange]:
        """Ranges that it walks: the kernel's, and the user half if the root translates it."""
        form = self.kernel.form
        if form.shared_root:
            return (form.user, form.kernel)
        return (form.kernel if self.root.table == self.kernel.root.value else form.user,)

    # For subclasses

    def level(self, key: int) -> int:
        """Level of a range."""
        return (key & LEVEL_MASK) >> LEVEL_SHIFT

    def unread(self, key: int) -> Optional[Shown]:
        """Content of a line whose table was not read; None for other lines."""
        if key & UNREADABLE:
            return Shown(self.kernel.form.level_name(self.level(key)), "not-in-dump")
        if key & OVER_LIMIT:
            return Shown(self.kernel.form.level_name(self.level(key)), "over-limit")
        return None

    def built_with(self, symbol: str, name: str) -> bool:
        """Whether the kernel has the function that a heading depends on. If unknown, it is missing."""
        try:
            return self.kernel.has_symbol(symbol, code=True)
        except Unavailable as error:
            self.missing.append(f"{name}: {error.what}")
            return False

    def head(self, place: AddressRange, name: str, start: str = "start", end: str = "end") -> None:
        """Add headings where a range starts, and after it."""
        self.headings += [(place.start, f"{name} {start}"), (place.end + 1, f"{name} {end}")]

    def head_region(self, key: str, name: str) -> Optional[AddressRange]:
        """Add a heading where a region starts, and return the region's place."""
        found = self.kernel.locate(key)
        if not isinstance(found, Placement):
            self.missing.append(f"{name}: {found.reason}")
            return None
        self.headings.append((found.range.start, name))
        return found.range


def dump_of(kernel: Kernel, root: Root) -> Dump:
    """Return the kernel's ptdump of a root's tables."""
    found: Type[Dump] = part(kernel.arch, "ptdump").DUMP
    return found(kernel, root)


def lines(dump: Dump, tree: Tree, wanted: Optional[AddressRange] = None) -> Iterator[Line]:
    """Yield the dump's lines, ascending.

    :param tree: from :meth:`Dump.tree`.
    :param wanted: show only these addresses.
    """
    parts = [_cut(part, wanted) for part in dump.parts() if wanted is None or part.overlaps(wanted)]
    if not parts:
        return
    form = dump.kernel.form
    state = _State(dump.headings, parts[0].start, dump.most_headings)
    ranges = chain.from_iterable(tree.ranges(part.start, part.end) for part in parts)
    for start, end, key in dump.noted(ranges):
        yield from state.note(start, end, 1 << form.shift(dump.level(key)), key)
    yield from state.flush(parts[-1].end + 1 & ALL)


def _cut(part: AddressRange, wanted: Optional[AddressRange]) -> AddressRange:
    if wanted is None:
        return part
    return AddressRange(max(part.start, wanted.start), min(part.end, wanted.end))


class _State:
    """``struct pg_state``."""

    def __init__(self, markers: Sequence[Tuple[int, str]], start: int, most: int) -> None:
        self._markers = markers
        self._most = most
        self._next = 0
        self._at = -1
        self._advance(start, 1)
        # A dump that starts in the middle begins under the heading that would be above it.
        while start and self._next <= start:
            self._advance(start, 1)
        self._start = start
        self._key: Optional[int] = None

    def _advance(self, address: int, most: int = 0) -> None:
        """Go to the next heading, and past all further headings at or below the address, up to a limit."""
        names: List[str] = []
        while not names or (len(names) < (most or self._most) and self._next <= address):
            self._at += 1
            names.append(self._markers[self._at][1])
            last = self._at + 1 == len(self._markers)
            # END_OF_SPACE_NR: no address reaches it.
            self._next = ALL + 1 if last else self._markers[self._at + 1][0]
        self._name = "; ".join(names)

    def note(self, start: int, end: int, step: int, key: int) -> List[Line]:
        """Call ``note_page()`` for every entry of a range; entries are ``step`` apart."""
        out = []
        if self._key is None:
            self._key = key
        elif key != self._key or start >= self._next:
            out.append(Line(self._start, start, self._key, self._name))
            if start >= self._next:
                self._advance(start)
            self._start, self._key = start, key
        # The next heading starts at the first entry at or above its address, one heading per entry.
        call = start
        while self._next <= end:
            call = max(call + step, call + -(-(self._next - call) // step) * step)
            if call > end:
                break
            out.append(Line(self._start, call, key, self._name))
            self._advance(call)
            self._start = call
        return out

    def flush(self, end: int) -> Iterator[Line]:
        """``note_page_flush()``."""
        if self._key is not None:
            yield Line(self._start, end, self._key, self._name)
