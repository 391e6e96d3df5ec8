# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every virtual address of a page of memory, with its region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from kvintro.arch.rights import EXEC, USER, WRITE, words
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Address, Column, Report, Size, Table
from kvintro.paging import EFFECTIVE_SHIFT, LEVEL_MASK, LEVEL_SHIFT
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
    Column("count", "times", "right", 1),
    Column("region", "region"),
    Column("effective", "rights"),
    Column("root", "page tables of"),
    Column("symbol", "symbol"),
)


def alias_report(kernel: Kernel, text: str, *, form: Optional[str] = None) -> Report:
    """Find the aliases of a page, given by a physical or virtual address.

    :param text: see :meth:`kvintro.queries.translate.Translator.parse`.
    :param form: kind of the number; by default virtual in the kernel half, else physical.
    :raises UsageError: the text is not an address.
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
            users, told = [], (f"addresses in processes are not known: {error.what}",)
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
        return (f"{subject.input} is {subject.state}: there is no memory",)
    page = "no struct page" if subject.page is None else f"struct page {subject.page:016x}"
    return (f"physical {subject.physical:016x}   pfn {subject.pfn:x}   {page}",)


def _row(kernel: Kernel, translator: Translator, alias: Alias) -> AliasRow:
    level = (alias.key & LEVEL_MASK) >> LEVEL_SHIFT
    region = translator.places.key_at(alias.virtual)
    form = kernel.form
    half = "user" if alias.virtual in form.user else "kernel"
    entry = kernel.entries.decode(alias.key & form.flag_bits(level), level, half=half)
    return AliasRow(
        virtual=Address(alias.virtual),
        count=alias.count,
        page_size=Size(alias.page_size),
        level=kernel.form.level_name(level),
        region=region,
        symbol=translator.symbol_at(alias.virtual, region),
        flags=entry.flags,
        effective=words(alias.key >> EFFECTIVE_SHIFT),
        root=alias.root,
    )


def _user_rows(kernel: Kernel, physical: int) -> Tuple[List[AliasRow], Sequence[str]]:
    """Addresses of the page in processes, from the reverse map, and notes about them.

    :raises Unavailable: the struct page, or what it refers to, cannot be read.
    """
    form = kernel.form
    found = user_mappings(kernel, physical >> form.page_shift)
    levels = {1 << form.shift(level): level for level in (1, *form.leaf_levels())}
    rows = []
    for mapping in found.found:
        rights = USER | ("w" in mapping.rights and WRITE) | ("x" in mapping.rights and EXEC)
        rows.append(
            AliasRow(
                virtual=Address(mapping.address + physical % form.page_size),
                count=1,
                page_size=mapping.page_size,
                level=form.level_name(levels[mapping.page_size]),
                region=kernel.regions.user.key,
                symbol=None,
                flags=(),
                effective=words(rights) if mapping.state == "mapped" else (mapping.state,),
                root=f"pid {mapping.pid} ({mapping.comm})",
            )
        )
    return rows, found.notes
