# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page tables as ranges, in the kernel's own words."""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import ALL, GLOBAL, NX, PAT, PCD, PRESENT, PSE, PWT, RW, USER
from kvintro.arch.x86_64_entry import level_name
from kvintro.kernel import Kernel
from kvintro.model import Address, AddressRange, Batch, Size, Stream, StreamField
from kvintro.paging import (
    EFFECTIVE_NX,
    EFFECTIVE_RW,
    EFFECTIVE_USER,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    OVER_LIMIT,
    UNREADABLE,
    Tree,
)
from kvintro.queries.ptdump import Line, Markers, lines, pruned_tree, stretches
from kvintro.readers.mapped import unread
from kvintro.regions import Root

FIELDS = ("start", "end", "size", "level", "state", "flags", "effective", "marker")

_BATCH = 1 << 14


def ptdump(
    kernel: Kernel, root: Root, *, wanted: Optional[AddressRange] = None, only_wx: bool = False
) -> Stream:
    """Dump a tree.

    :param root: see :mod:`kvintro.queries.roots`.
    :param wanted: only these addresses.
    :param only_wx: only what can be both written and executed, all levels taken together.
    """
    markers = Markers(kernel)
    tree = pruned_tree(kernel, root)
    found: Iterable[Line] = lines(tree, markers, stretches(kernel, wanted))
    if only_wx:
        found = (line for line in found if line.writable_and_executable or _lost(line))
    notes = [*kernel.source.warnings]
    notes += [f"there is no heading for {missing}" for missing in markers.missing]
    empty = "" if root.table != kernel.root.value else _empty(kernel)
    if empty:
        notes.append(empty)
    return Stream(
        "ptdump",
        kernel.identity,
        "ranges",
        [StreamField(key, 0) for key in FIELDS],
        FIELDS,
        _batches(tree, kernel.geometry.levels, found, bool(empty)),
        notes,
    )


def _empty(kernel: Kernel) -> str:
    return (
        unread(kernel, kernel.geometry.guard_hole.end + 1, ALL)
        if not kernel.kernel_ranges.any(MAPPED)
        else ""
    )


def _lost(line: Line) -> bool:
    return bool(line.key & (UNREADABLE | OVER_LIMIT))


def _batches(tree: Tree, levels: int, found: Iterable[Line], empty: bool) -> Iterator[Batch]:
    source = iter(found)
    while True:
        part = list(islice(source, _BATCH))
        if not part:
            if empty:
                yield Batch(dict.fromkeys(FIELDS, ()), partial=True)
            return
        level, state, flags, effective = zip(*[_told(line.key, levels) for line in part])
        values: Dict[str, Sequence[Any]] = {
            "start": [Address(line.start) for line in part],
            "end": [Address(line.end - 1 & ALL) for line in part],
            "size": [Size(line.size) for line in part],
            "level": level,
            "state": state,
            "flags": flags,
            "effective": effective,
            "marker": [line.marker for line in part],
        }
        lost = not {"not-in-dump", "over-limit"}.isdisjoint(state)
        yield Batch(values, partial=lost or tree.limited)


@lru_cache(maxsize=1 << 12)
def _told(key: int, levels: int) -> Tuple[str, str, Tuple[str, ...], Tuple[str, ...]]:
    """(level, state, flags, effective rights), of which there are few different ones."""
    level = (key & LEVEL_MASK) >> LEVEL_SHIFT
    name = level_name(level, levels)
    if key & UNREADABLE:
        return name, "not-in-dump", (), ()
    if key & OVER_LIMIT:
        return name, "over-limit", (), ()
    if not key & PRESENT:
        return name, "not-present", (), ()
    flags = [
        text
        for mask, text in (
            (USER, "USR"),
            (RW, "RW"),
            (PWT, "PWT"),
            (PCD, "PCD"),
            (PSE if level > 1 else 0, "PSE"),
            (PAT if level == 1 else 0, "PAT"),
            (GLOBAL, "GLB"),
            (NX, "NX"),
        )
        if key & mask
    ]
    rights = [
        text
        for mask, text in ((EFFECTIVE_USER, "USR"), (EFFECTIVE_RW, "RW"), (EFFECTIVE_NX, "NX"))
        if key & mask
    ]
    return name, "present", tuple(flags), tuple(rights)
