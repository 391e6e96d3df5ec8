# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel against its own rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

from kvintro.kernel import Kernel
from kvintro.model import Address, Column, Report, Size, Table
from kvintro.queries.audit import CHECKS


@dataclass(frozen=True)
class PlaceRow:
    """Where a rule is broken."""

    start: Address
    end: Address
    size: Size
    what: str


@dataclass(frozen=True)
class CheckRow:
    """One rule; the JSON object of the same fields is described in docs/check.md."""

    key: str
    state: str
    title: str
    detail: str
    places: Tuple[PlaceRow, ...]


COLUMNS = (Column("state", "state"), Column("title", "rule"), Column("detail", "looked at"))


def check(kernel: Kernel) -> Report:
    """Apply all rules."""
    rows: List[CheckRow] = []
    for rule in CHECKS:
        verdict = rule.verdict(kernel)
        places = tuple(
            PlaceRow(Address(p.start), Address(p.end), Size(p.end - p.start + 1), p.what)
            for p in verdict.places
        )
        rows.append(CheckRow(rule.key, verdict.state, rule.title, verdict.detail, places))
    failed = any(row.state == "failed" for row in rows)
    return Report(
        command="check",
        kernel=kernel.identity,
        tables=(Table("checks", COLUMNS, rows),),
        notes=tuple(kernel.source.warnings),
        # A broken rule is an answer, whatever else could not be looked at.
        partial=not failed and any(row.state == "unknown" for row in rows),
        negative=failed,
    )
