# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decodes raw page-table entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence, Tuple

from kvintro.arch import entries_of_any, of_this_machine
from kvintro.arch.entry import Entry
from kvintro.arch.form import LEVEL_NAMES, PagingForm
from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import Address, Column, NoExtra, Report, Size, Table


@dataclass(frozen=True)
class SwapRow:
    """The fields of a swap entry."""

    type: int
    kind: Optional[str]
    offset: int
    pfn: Optional[int]
    markers: Tuple[str, ...]


@dataclass(frozen=True)
class EntryRow:
    """One entry; the JSON object of the same fields is described in docs/pte.md."""

    input: str
    value: Address
    level: str
    half: str
    kind: str
    physical: Optional[Address]
    pfn: Optional[int]
    page_size: Optional[Size]
    contiguous: Optional[Size]
    flags: Tuple[str, ...]
    bits: Mapping[str, str]
    pkey: Optional[int]
    pat: Optional[int]
    memory_type: Optional[str]
    memory_source: Optional[str]
    inverted: bool
    reserved: Tuple[int, ...]
    swap: Optional[SwapRow]


PteReport = Report[Tuple[Table[EntryRow]], NoExtra]

COLUMNS = (
    Column("value", "value"),
    Column("level", "level"),
    Column("kind", "kind"),
    Column("physical", "physical"),
    Column("page_size", "page"),
    Column("flags", "flags"),
)


def pte(
    kernel: Optional[Kernel], values: Sequence[str], *, level: str = "pte", half: Optional[str] = None
) -> PteReport:
    """Decode entries.

    :param kernel: the kernel of the entries, whose address mask, levels and special swap types are used; None
        to decode only what is the same on all kernels.
    :param level: name (``pte`` to ``pgd``) or number (1 to 5) of the level of their tables.
    :param half: ``user`` or ``kernel``; None to infer it from each entry.
    :raises UsageError: a value is not a number, or there is no such level.
    """
    entries = entries_of_any(of_this_machine(), level) if kernel is None else kernel.entries
    number = _level(level, entries.form)
    found = [(text, entries.decode(_value(text), number, half=half)) for text in values]
    notes = [] if kernel is None else [*kernel.source.warnings]
    unsure = {text: entry.half_note for text, entry in found if entry.half_note}
    for why in dict.fromkeys(unsure.values()):
        about = [text for text, entry in found if entry.half_note == why]
        notes.append(f"{', '.join(about[:3])}{', ...' * (len(about) > 3)}: {why}; give --half")
    notes += entries.notes
    rows = [_row(text, entry, entries.form) for text, entry in found]
    return Report(
        command="pte",
        kernel=None if kernel is None else kernel.identity,
        tables=(Table("entries", COLUMNS, rows),),
        notes=tuple(notes),
    )


def _value(text: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise UsageError(
            f"{text} is not a page-table entry", "give 64 bits in hexadecimal, with or without 0x"
        )
    return value


def _level(text: str, form: PagingForm) -> int:
    levels = range(1, form.levels + 1)
    by_name = {form.level_name(level): level for level in levels}
    # With fewer levels the upper ones are folded into the pgd.
    for name in LEVEL_NAMES.values():
        by_name.setdefault(name, form.levels)
    by_name.update({str(level): level for level in levels})
    if text not in by_name:
        raise UsageError(
            f"there is no level {text} with {form.levels} levels of paging",
            f"levels are {', '.join(by_name)}",
        )
    return by_name[text]


def _row(text: str, entry: Entry, form: PagingForm) -> EntryRow:
    physical = entry.physical
    return EntryRow(
        input=text,
        value=Address(entry.value),
        level=form.level_name(entry.level),
        half=entry.half,
        kind=entry.kind,
        physical=None if physical is None else Address(physical),
        pfn=None if physical is None else physical >> form.page_shift,
        page_size=Size(entry.page_size) if entry.page_size else None,
        contiguous=Size(entry.contiguous) if entry.contiguous else None,
        flags=entry.flags,
        bits={str(bit): name for bit, name in sorted(entry.bits.items())},
        pkey=entry.pkey,
        pat=entry.pat,
        memory_type=entry.memory_type,
        memory_source=entry.memory_source or None,
        inverted=entry.inverted,
        reserved=tuple(bit for bit in range(64) if entry.reserved >> bit & 1),
        swap=None
        if entry.swap is None
        else SwapRow(entry.swap.type, entry.swap.kind, entry.swap.offset, entry.swap.pfn, entry.swap.markers),
    )
