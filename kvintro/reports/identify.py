# SPDX-License-Identifier: LGPL-2.1-or-later
"""Identities of addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import ALL, Address, Column, NoExtra, Placement, Report, Size, Table, Thing
from kvintro.queries.constants import constants
from kvintro.queries.identify import Identified, Identifier
from kvintro.queries.names import region_key
from kvintro.queries.placements import HOLE
from kvintro.queries.translate import Input, Translator
from kvintro.text import printable


@dataclass(frozen=True)
class IdentifiedRow:
    """One address; the JSON object of the same fields is described in docs/identify.md."""

    input: str
    address: Optional[Address]
    state: str
    region: Optional[str]
    physical: Optional[Address]
    page_size: Optional[Size]
    identities: Tuple[Thing, ...]
    note: Optional[str]


IdentifyReport = Report[Tuple[Table[IdentifiedRow]], NoExtra]

COLUMNS = (
    Column("input", "input"),
    Column("address", "address"),
    Column("state", "state"),
    Column("region", "region"),
    Column("physical", "physical"),
)


def identify(
    kernel: Optional[Kernel], texts: Sequence[str], *, form: Optional[str] = None, pid: Optional[int] = None
) -> IdentifyReport:
    """Identify addresses.

    :param texts: see :meth:`kvintro.queries.translate.Translator.parse`.
    :param kernel: None to recognise only values that mean the same on every kernel.
    :param pid: process whose page tables translate user addresses.
    :param form: kind of the numbers; by default virtual in the kernel half, else physical.
    :raises UsageError: one of the texts is not an address.
    """
    if kernel is None:
        return _without_kernel(texts)
    below = None if pid is None else "virtual"
    translator = Translator(kernel, pid=pid, form=form, below=below, plain_virtual=True)
    identifier = Identifier(kernel, translator)
    rows: List[IdentifiedRow] = []
    problems: List[str] = [*kernel.source.warnings]
    failed = False
    for text in texts:
        found = identifier.identify(_input(kernel, translator, text))
        rows.append(_row(found))
        failed |= bool(found.problems)
        problems.extend(f"{text}: {problem}" for problem in found.problems)
    return Report(
        command="identify",
        kernel=kernel.identity,
        tables=(Table("results", COLUMNS, rows),),
        notes=tuple(dict.fromkeys(problems)),
        partial=failed or any(row.state == "not-in-dump" for row in rows),
        negative=any(row.state != "mapped" for row in rows),
    )


def _input(kernel: Kernel, translator: Translator, text: str) -> Input:
    """Parse an address, a symbol, or a region's name, which means the region's start."""
    try:
        return translator.parse(text)
    except UsageError:
        key = region_key(kernel.regions, kernel.arch, text)
        place = None if key in (None, HOLE) else kernel.locate(str(key))
        if not isinstance(place, Placement):
            raise
        start = place.used.start if place.used else place.range.start
        return Input(text, start, "virtual", f"{text} is a region; this is its first address in use")


def _without_kernel(texts: Sequence[str]) -> IdentifyReport:
    rows = []
    for text in texts:
        try:
            value = int(text, 16) & ALL
        except ValueError:
            raise UsageError(
                f"{printable(text)!r} needs a kernel, whose symbol it may be", "name one with -c CORE"
            ) from None
        things = tuple(constants(value))
        note = None if things else "not a value that means the same on every kernel"
        rows.append(IdentifiedRow(text, Address(value), "unknown", None, None, None, things, note))
    return Report(
        command="identify",
        kernel=None,
        tables=(Table("results", COLUMNS, rows),),
        notes=("no kernel was read, so only error values and poison are recognised (try -c or --qemu)",),
        negative=not all(row.identities for row in rows),
    )


def _row(found: Identified) -> IdentifiedRow:
    where = found.translation
    return IdentifiedRow(
        input=where.input,
        address=where.virtual,
        state=where.state,
        region=where.region,
        physical=where.physical,
        page_size=where.page_size,
        identities=found.identities,
        note=where.note,
    )
