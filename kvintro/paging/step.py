# SPDX-License-Identifier: LGPL-2.1-or-later
"""Translates one address step by step."""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Tuple

from kvintro.arch.form import ENTRY_SIZE, PagingForm
from kvintro.errors import NotInDump

#: Reads physical memory: (address, size in bytes) -> bytes; raises NotInDump.
ReadPhysical = Callable[[int, int], bytes]


class Step(NamedTuple):
    """One entry that a walk reads.

    :ivar level: 1 for tables of the smallest pages, ``levels`` for the root.
    :ivar entry_address: physical address of the entry.
    :ivar value: the entry; None if the table is not in the source.
    """

    level: int
    entry_address: int
    value: Optional[int]


class Walk(NamedTuple):
    """The translation of one virtual address.

    :ivar state: ``mapped``, ``unmapped`` (an entry is not present, or the processor faults on it),
        ``not-in-dump`` (a table is missing from the source; the page of a ``mapped`` address may be missing
        too) or ``non-canonical``.
    :ivar physical: physical address if mapped.
    :ivar page_size: bytes of the page that maps it; 0 if none does.
    """

    state: str
    steps: Tuple[Step, ...]
    physical: Optional[int] = None
    page_size: int = 0


def walk(read: ReadPhysical, form: PagingForm, root: int, address: int) -> Walk:
    """Translate one virtual address as the hardware would.

    :param root: physical address of the root table.
    """
    if not form.is_canonical(address):
        return Walk("non-canonical", ())
    steps: List[Step] = []
    table = root
    for level in range(form.levels, 0, -1):
        entry_address = table + ENTRY_SIZE * form.index(address, level)
        try:
            value = int.from_bytes(read(entry_address, ENTRY_SIZE), form.byte_order)
        except NotInDump:
            steps.append(Step(level, entry_address, None))
            return Walk("not-in-dump", tuple(steps))
        steps.append(Step(level, entry_address, value))
        if level > 1 and form.is_table(value, level):
            table = form.table_address(value)
        elif form.is_leaf(value, level):
            size = 1 << form.shift(level)
            physical = form.page_address(value, level) | address & form.offset_mask(value, level)
            return Walk("mapped", tuple(steps), physical, size)
        else:
            break
    return Walk("unmapped", tuple(steps))
