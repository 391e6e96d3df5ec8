# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every virtual address of a page of memory, with the region it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import PAGE_SHIFT, PAGE_SIZE
from kvintro.arch.x86_64_entry import decode, level_name
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Address, Column, Report, Size, Table
from kvintro.paging import (
    EFFECTIVE_NX,
    EFFECTIVE_RW,
    EFFECTIVE_USER,
    FLAG_BITS,
    LEVEL_MASK,
    LEVEL_SHIFT,
)
from kvintro.queries.aliases import Alias, aliases
from kvintro.queries.rmap import user_mappings
from kvintro.queries.translate import Translation, Translator


@dataclass(frozen=True)
class AliasRow:
    """One alias; the JSON object of the same fields is described in docs/aliases.md."""

    virtual: Address
    count: int
    page_size: Size
    level: str
    region: str
    symbol: Optional[str]
    flags: Tuple[str, ...]
    effective: Tuple[str, ...]
    root: str


COLUMNS = (
    Column("virtual", "virtual"),
    Column("page_size", "mapped by", "right"),
    Column("count", "times", "right"),
    Column("region", "region"),
    Column("effective", "rights"),
    Column("root", "page tables of"),
    Column("symbol", "symbol"),
)


def alias_report(kernel: Kernel, text: str, *, form: Optional[str] = None) -> Report:
    """The aliases of what a physical or virtual address stands for.

    :param text: see :meth:`kvintro.queries.translate.Translator.parse`.
    :param form: what the number is; by default below the kernel half physical, above it virtual.
    :raises UsageError: no address.
    """
    translator = Translator(kernel, form=form, below="physical")
    subject = translator.translate(translator.parse(text))
    rows: List[AliasRow] = []
    notes = [*kernel.source.warnings]
    complete = True
    if subject.physical is not None:
        found = aliases(kernel, subject.physical)
        notes += found.problems
        rows = [_row(kernel, translator, alias) for alias in found.found]
        try:
            users, told = _user_rows(kernel, subject.physical)
            complete = found.complete and not found.problems
        except Unavailable as error:
            users, told = [], (f"addresses in processes: {error.what}",)
            complete = False
        rows += users
        notes += told
        rows.sort(key=lambda row: (row.virtual, row.root))
    if subject.note:
        notes.append(f"{subject.input}: {subject.note}")
    return Report(
        command="aliases",
        kernel=kernel.identity,
        tables=(Table("aliases", COLUMNS, rows),),
        head=_head(subject),
        notes=tuple(dict.fromkeys(notes)),
        partial=not complete or (subject.physical is None and subject.state == "not-in-dump"),
        negative=not rows,
        extra={
            "input": subject.input,
            "physical": subject.physical,
            "pfn": subject.pfn,
            "page": subject.page,
        },
    )


def _head(subject: Translation) -> Tuple[str, ...]:
    if subject.physical is None:
        return (f"{subject.input} is {subject.state}: no memory is there",)
    page = "no struct page" if subject.page is None else f"struct page {subject.page:016x}"
    return (f"physical {subject.physical:016x}   pfn {subject.pfn:x}   {page}",)


def _row(kernel: Kernel, translator: Translator, alias: Alias) -> AliasRow:
    level = (alias.key & LEVEL_MASK) >> LEVEL_SHIFT
    region = translator.places.key_at(alias.virtual)
    half = "user" if alias.virtual <= kernel.geometry.user.end else "kernel"
    entry = decode(alias.key & FLAG_BITS, level, kernel.geometry, half=half, dialect=kernel.entry_dialect)
    rights = (
        "user" if alias.key & EFFECTIVE_USER else "",
        "RW" if alias.key & EFFECTIVE_RW else "ro",
        "NX" if alias.key & EFFECTIVE_NX else "x",
    )
    return AliasRow(
        virtual=Address(alias.virtual),
        count=alias.count,
        page_size=Size(alias.page_size),
        level=level_name(level, kernel.geometry.levels),
        region=region,
        symbol=translator.symbol_at(alias.virtual, region),
        flags=entry.flags,
        effective=tuple(right for right in rights if right),
        root=alias.root,
    )


def _user_rows(kernel: Kernel, physical: int) -> Tuple[List[AliasRow], Sequence[str]]:
    """The addresses at which processes have the page, by the reverse map; notes on them.

    :raises Unavailable: the struct page, or what it leads to, cannot be read.
    """
    found = user_mappings(kernel, physical >> PAGE_SHIFT)
    rows = []
    for mapping in found.found:
        level = {12: 1, 21: 2, 30: 3}[mapping.page_size.bit_length() - 1]
        rights = (
            "user",
            "RW" if "w" in mapping.rights else "ro",
            "x" if "x" in mapping.rights else "NX",
        )
        rows.append(
            AliasRow(
                virtual=Address(mapping.address + physical % PAGE_SIZE),
                count=1,
                page_size=mapping.page_size,
                level=level_name(level, kernel.geometry.levels),
                region="user",
                symbol=None,
                flags=(),
                effective=rights if mapping.state == "mapped" else (mapping.state,),
                root=f"pid {mapping.pid} ({mapping.comm})",
            )
        )
    return rows, found.notes
