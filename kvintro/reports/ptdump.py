# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page tables as ranges, with the kernel's own names for flags and levels."""

from __future__ import annotations

from itertools import islice
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

from kvintro.kernels import Kernel
from kvintro.model import ALL, Address, AddressRange, Batch, Root, Size, Stream, StreamField
from kvintro.paging import MAPPED, Tree
from kvintro.queries.ptdump import Dump, Line, Shown, dump_of, lines
from kvintro.readers.mapped import unread

FIELDS = ("start", "end", "size", "level", "state", "flags", "effective", "marker")

_BATCH = 1 << 14


def ptdump(
    kernel: Kernel, root: Root, *, wanted: Optional[AddressRange] = None, only_wx: bool = False
) -> Stream:
    """Dump a tree.

    :param root: see :mod:`kvintro.queries.roots`.
    :param wanted: only these addresses.
    :param only_wx: only ranges that are both writable and executable, by all levels together.
    """
    dump = dump_of(kernel, root)
    tree = dump.tree()
    found: Iterable[Line] = lines(dump, tree, wanted)
    if only_wx:
        found = (line for line in found if line.lost or dump.writable_and_executable(line.key))
    notes = [*kernel.source.warnings]
    notes += [f"there is no heading for {missing}" for missing in dump.missing]
    empty = "" if root.table != kernel.root.value else _empty(kernel)
    if empty:
        notes.append(empty)
    batches = _batches(dump, tree, found, bool(empty))
    return Stream(
        "ptdump",
        kernel.identity,
        "ranges",
        [StreamField(key, 0) for key in FIELDS],
        FIELDS,
        _or_nothing(batches, notes) if only_wx else batches,
        notes,
    )


def _or_nothing(batches: Iterable[Batch], notes: List[str]) -> Iterator[Batch]:
    """The batches; if there are none, a note says so."""
    nothing = True
    for batch in batches:
        nothing = False
        yield batch
    if nothing:
        notes.append("nothing is both writable and executable")


def _empty(kernel: Kernel) -> str:
    if kernel.kernel_ranges.any(MAPPED):
        return ""
    return unread(kernel, kernel.form.kernel.start, kernel.form.kernel.end)


def _batches(dump: Dump, tree: Tree, found: Iterable[Line], empty: bool) -> Iterator[Batch]:
    source = iter(found)
    # A tree has few different keys.
    shown: Dict[int, Shown] = {}
    while True:
        part = list(islice(source, _BATCH))
        if not part:
            if empty:
                yield Batch(dict.fromkeys(FIELDS, ()), partial=True)
            return
        for line in part:
            if line.key not in shown:
                shown[line.key] = dump.shown(line.key)
        level, state, flags, effective = zip(*[shown[line.key] for line in part])
        values: Dict[str, Sequence[Any]] = {
            "start": [Address(line.start) for line in part],
            "end": [Address(line.end - 1 & ALL) for line in part],
            "size": [Size(line.size) for line in part],
            "level": level,
            "state": state,
            "flags": flags,
            "effective": effective,
            "marker": [line.marker for line in part],
            # For the text only.
            "physical": dump.physical(part),
        }
        lost = not {"not-in-dump", "over-limit"}.isdisjoint(state)
        yield Batch(values, partial=lost or tree.limited)
