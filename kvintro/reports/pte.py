# SPDX-License-Identifier: LGPL-2.1-or-later
"""Raw page-table entries, decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Mapping, Optional, Sequence, Tuple

from kvintro.arch import x86_64
from kvintro.arch.x86_64_entry import LEVEL_NAMES, Dialect, Entry, decode, level_name
from kvintro.errors import UsageError
from kvintro.kernel import Kernel
from kvintro.model import Address, Column, Report, Size, Table


@dataclass(frozen=True)
class SwapRow:
    """What a swap entry says."""

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
    flags: Tuple[str, ...]
    bits: Mapping[str, str]
    pkey: Optional[int]
    pat: Optional[int]
    memory_type: Optional[str]
    inverted: bool
    reserved: Tuple[int, ...]
    swap: Optional[SwapRow]


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
) -> Report:
    """Decode entries.

    :param kernel: whose entries they are: its address mask, levels and special swap types; None for what is
        the same everywhere.
    :param level: name (``pte`` to ``pgd``) or number (1 to 5) of the level of the tables they are in.
    :param half: ``user`` or ``kernel``, None for what each looks like.
    :raises UsageError: no number, or no level.
    """
    if kernel is not None:
        geometry, dialect = kernel.geometry, kernel.entry_dialect
    else:
        # Four levels or five make no difference to a single entry but for the root's name.
        geometry = x86_64.ARCHITECTURE.geometry(5 if level in ("p4d", "5") else 4, (1 << 52) - 1)
        dialect = Dialect()
    number = _level(level, geometry.levels)
    rows = [
        _row(text, decode(_value(text), number, geometry, half=half, dialect=dialect), geometry.levels)
        for text in values
    ]
    notes: List[str] = []
    guessed = [row.input for row in rows if half is None and row.kind == "table" and row.half == "user"]
    if guessed:
        # arch/x86/kernel/head_64.S: entries of init_top_pgt are _PAGE_TABLE, with USER.
        notes.append(
            f"{', '.join(guessed[:3])}{', ...' * (len(guessed) > 3)}: an entry that points to a table may be "
            "of either half, since the kernel's upper levels have the USER bit too; --half says which"
        )
    if kernel is None:
        notes.append(
            "no source was named: addresses are taken to be 52 bits wide (memory encryption takes some), "
            "and software bits 57 and 58 and special swap types stay without a name"
        )
    else:
        notes.extend(kernel.source.warnings)
        if geometry.physical_mask != (1 << 52) - 1:
            notes.append(
                f"addresses are masked with {geometry.pfn_mask:#x} ({kernel.physical_mask.provenance})"
            )
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
        raise UsageError(f"{text} is no page-table entry", "give 64 bits in hexadecimal, with or without 0x")
    return value


def _level(text: str, levels: int) -> int:
    by_name = {level_name(n, levels): n for n in range(1, levels + 1)}
    # On four levels the p4d is folded into the pgd.
    by_name.setdefault("p4d", levels)
    by_name.update({str(n): n for n in LEVEL_NAMES if n <= levels})
    if text not in by_name:
        raise UsageError(
            f"there is no level {text} with {levels} levels of paging", f"levels are {', '.join(by_name)}"
        )
    return by_name[text]


def _row(text: str, entry: Entry, levels: int) -> EntryRow:
    physical = entry.physical
    return EntryRow(
        input=text,
        value=Address(entry.value),
        level=level_name(entry.level, levels),
        half=entry.half,
        kind=entry.kind,
        physical=None if physical is None else Address(physical),
        pfn=None if physical is None else physical >> x86_64.PAGE_SHIFT,
        page_size=Size(entry.page_size) if entry.page_size else None,
        flags=entry.flags,
        bits={str(bit): name for bit, name in sorted(entry.bits.items())},
        pkey=entry.pkey,
        pat=entry.pat,
        memory_type=entry.memory_type,
        inverted=entry.inverted,
        reserved=tuple(bit for bit in range(64) if entry.reserved >> bit & 1),
        swap=None
        if entry.swap is None
        else SwapRow(entry.swap.type, entry.swap.kind, entry.swap.offset, entry.swap.pfn, entry.swap.markers),
    )
