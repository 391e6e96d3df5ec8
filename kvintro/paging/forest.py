# SPDX-License-Identifier: LGPL-2.1-or-later
"""Converts the user halves of many page-table trees to ranges at once.

A process has a few dozen tables, and a :class:`~kvintro.paging.tree.Tree` takes a few dozen array operations
for them. Here the tables of many processes are one array at each level. The ranges are the same as those of a
tree. Trees in which anything is unusual are left to :class:`~kvintro.paging.tree.Tree`, which has all the
limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Collection, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.arch.form import PagingForm
from kvintro.arch.rights import ALL_RIGHTS
from kvintro.paging.step import ReadPhysical
from kvintro.paging.tree import NONZERO, Ranges, coalesce, flags_of, keys_of, read_tables

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]
    I64 = NDArray[numpy.int64]

#: Number of roots at once. Their numbers and an address of user mode fit into 64 bits.
MOST_ROOTS = 64
_MOST_TABLES = 4000  # per level: 16 MB of 4K tables
_PAGES_AT_ONCE = 1 << 20


class Level(NamedTuple):
    """The tables of one level, by root, those of a root in order of address.

    :ivar tables: physical addresses.
    :ivar owners: index of each table's root.
    :ivar bases: first address that each table translates.
    :ivar entries: their entries, a row for each table; of a root only those for user mode.
    :ivar inner: which of the tables point to other tables.
    """

    level: int
    tables: U64
    owners: I64
    bases: U64
    entries: U64
    inner: "NDArray[numpy.bool_]"


class Forest:
    """The user halves of some roots.

    :ivar roots: physical addresses of the root tables.
    :ivar levels: from the roots to the lowest level that has tables.
    """

    def __init__(self, form: PagingForm, roots: Sequence[int]) -> None:
        self.form = form
        self.roots = roots
        self.levels: List[Level] = []
        self._starts: List[U64] = []
        self._keys: List[U64] = []

    def ranges(self) -> List[Ranges]:
        """The ranges of each root."""
        import numpy

        u, bits = numpy.uint64, self.form.half_bits
        starts, keys = numpy.concatenate(self._starts), numpy.concatenate(self._keys)
        order = numpy.argsort(starts, kind="stable")
        starts, keys = starts[order], keys[order]
        cuts = numpy.searchsorted(starts, numpy.arange(len(self.roots) + 1, dtype=u) << u(bits)).tolist()
        starts &= u((1 << bits) - 1)
        end = self.form.user.end
        return [
            Ranges(*coalesce(starts[low:high], keys[low:high]), end).clip(0, end)
            for low, high in zip(cuts, cuts[1:])
        ]

    def pages(self) -> Iterator[Tuple[I64, U64, U64]]:
        """(index of the root, address, page frame) of each page that is mapped, as arrays, in no order."""
        import numpy

        u, form = numpy.uint64, self.form
        for found in self.levels:
            at = numpy.flatnonzero(form.is_leaf(found.entries, found.level))
            row, column = numpy.divmod(at, found.entries.shape[1])
            shift = form.shift(found.level)
            addresses = found.bases[row] + (column.astype(u) << u(shift))
            frames = form.page_address(found.entries.reshape(-1)[at], found.level) >> u(form.page_shift)
            each = 1 << (shift - form.page_shift)
            for low in range(0, len(at) * each, _PAGES_AT_ONCE):
                number = numpy.arange(low, min(low + _PAGES_AT_ONCE, len(at) * each))
                which, part = numpy.divmod(number, each)
                offsets = part.astype(u)
                where = addresses[which] + (offsets << u(form.page_shift))
                yield found.owners[row[which]], where, frames[which] + offsets

    def add(self, found: Level, effective: U64, child: "NDArray[numpy.bool_]") -> None:
        """Add the ranges of a level's entries that do not point to tables.

        :param effective: rights that the levels above leave to each table.
        :param child: which entries point to tables.
        """
        import numpy

        u, form, level = numpy.uint64, self.form, found.level
        values = found.entries
        if level == 1:
            # As in Tree: flags determine the ranges, and only the first entry of each is examined further.
            values = flags_of(form, values, level)
            numpy.bitwise_or(values, u(NONZERO), out=values, where=found.entries != u(0))
        change = numpy.empty(values.shape, bool)
        change[:, 0] = True
        numpy.not_equal(values[:, 1:], values[:, :-1], out=change[:, 1:])
        if level > 1:
            change[:, 1:] |= child[:, :-1]
            change &= ~child
        heads = numpy.flatnonzero(change)
        row, column = numpy.divmod(heads, values.shape[1])
        keys = keys_of(form, found.entries.reshape(-1)[heads], level, effective[row])
        place = found.bases[row] + (column.astype(u) << u(form.shift(level)))
        self._starts.append(found.owners[row].astype(u) << u(form.half_bits) | place)
        self._keys.append(keys)


def grow(
    read: ReadPhysical,
    form: PagingForm,
    roots: Sequence[int],
    *,
    memory_end: Optional[int] = None,
    unusable: Collection[int] = (),
) -> Optional[Forest]:
    """Read the user halves of some roots; None if any table is unusual, or if there are many.

    Tables are unusual if they are not in the source or known to be invalid, if a root refers to one twice, or
    if most of their entries cannot be a kernel's.

    :param roots: physical addresses of at most :data:`MOST_ROOTS` root tables.
    :param memory_end: physical address after the last RAM; None if unknown.
    :param unusable: physical addresses of tables whose content is known to be invalid.
    """
    import numpy

    u = numpy.uint64
    forest = Forest(form, roots)
    tables = numpy.array(roots, u)
    owners = numpy.arange(len(roots))
    bases = numpy.zeros(len(roots), u)
    effective = numpy.full(len(roots), ALL_RIGHTS, u)
    bad = numpy.array(sorted(unusable), u)
    met: List[U64] = []
    for level in range(form.levels, 0, -1):
        if not len(tables):
            break
        if len(tables) > _MOST_TABLES or numpy.isin(tables, bad).any():
            return None
        met.append(owners.astype(u) << u(40) | tables >> u(form.page_shift))
        order = numpy.argsort(tables, kind="stable")
        data, missing = read_tables(read, form, tables[order], level)
        if missing.any():
            return None
        entries = numpy.empty_like(data)
        entries[order] = data
        if level > 1 and memory_end is not None and _any_nonsense(form, entries, level, memory_end):
            return None
        if level == form.levels:
            entries = numpy.ascontiguousarray(entries[:, form.user_entries()])
        child = form.is_table(entries, level) if level > 1 else numpy.zeros((1, 1), bool)
        inner = numpy.any(child, axis=1).reshape(-1)
        found = Level(level, tables, owners, bases, entries, inner)
        forest.levels.append(found)
        forest.add(found, effective, child)
        if level == 1:
            break
        row, column = numpy.nonzero(child)
        entry = entries[row, column]
        effective = effective[row] & form.table_rights(entry)
        bases = bases[row] + (column.astype(u) << u(form.shift(level)))
        owners, tables = owners[row], form.table_address(entry)
    known = numpy.sort(numpy.concatenate(met))
    return None if (known[1:] == known[:-1]).any() else forest


def _any_nonsense(form: PagingForm, entries: U64, level: int, memory_end: int) -> bool:
    """As :meth:`kvintro.paging.tree.Tree._is_nonsense`, of any table."""
    import numpy

    present, lower = form.is_present(entries, level), form.is_table(entries, level)
    far = form.table_address(entries) >= numpy.uint64(memory_end)
    bad = present & numpy.where(lower, far, ~form.is_leaf(entries, level))
    return bool((2 * numpy.count_nonzero(bad, axis=1) > numpy.count_nonzero(present, axis=1)).any())
