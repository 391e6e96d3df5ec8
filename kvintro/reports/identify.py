# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything known about addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from kvintro.kernel import Kernel
from kvintro.model import Address, Column, Report, Size, Table
from kvintro.queries.identify import Identified, Identifier, Identity
from kvintro.queries.translate import Translator


@dataclass(frozen=True)
class IdentifiedRow:
    """One address; the JSON object of the same fields is described in docs/identify.md."""

    input: str
    address: Optional[Address]
    state: str
    region: Optional[str]
    physical: Optional[Address]
    page_size: Optional[Size]
    identities: Tuple[Identity, ...]
    note: Optional[str]


COLUMNS = (
    Column("input", "input"),
    Column("address", "address"),
    Column("state", "state"),
    Column("region", "region"),
    Column("physical", "physical"),
)


def identify(kernel: Kernel, texts: Sequence[str], *, form: Optional[str] = None) -> Report:
    """Identify addresses.

    :param texts: see :meth:`kvintro.queries.translate.Translator.parse`.
    :param form: what the numbers are; by default below the kernel half physical, above it virtual.
    :raises UsageError: one of the texts is no address.
    """
    translator = Translator(kernel, form=form, plain_virtual=True)
    identifier = Identifier(kernel, translator)
    rows: List[IdentifiedRow] = []
    problems: List[str] = [*kernel.source.warnings]
    failed = False
    for text in texts:
        found = identifier.identify(translator.parse(text))
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
