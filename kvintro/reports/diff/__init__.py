# SPDX-License-Identifier: LGPL-2.1-or-later
"""Differences between two kernels, or between two moments of one: findings first, then tables."""

from __future__ import annotations

from typing import List, Mapping, Optional, Sequence, TypedDict

from kvintro.model import Column, Report, Table
from kvintro.reports.diff.findings import FindingRow, findings
from kvintro.reports.diff.lacks import compared, lacks
from kvintro.reports.diff.read import side_of_kernel
from kvintro.reports.diff.saved import side_of_json
from kvintro.reports.diff.sides import PARTS, Known, RegionFacts, Side, identity_fields
from kvintro.reports.diff.tables import REGION_COLUMNS, AmountRow, RegionDiffRow, amounts, region_rows

__all__ = [
    "PARTS",
    "AmountRow",
    "DiffReport",
    "FindingRow",
    "RegionDiffRow",
    "RegionFacts",
    "Side",
    "diff",
    "identity_fields",
    "side_of_json",
    "side_of_kernel",
]

_FINDING_COLUMNS = (Column("kind", "about"), Column("text", "what differs"))


class DiffExtra(TypedDict):
    """Further values of the report.

    :ivar a: the identity of A, with its label.
    :ivar same: whether nothing differs; None if no difference was found but not everything was compared.
    :ivar compared: number of things that were compared, by kind.
    :ivar not_compared: what could not be compared, and why.
    """

    a: Mapping[str, Known]
    b: Mapping[str, Known]
    same: Optional[bool]
    compared: Mapping[str, int]
    not_compared: Sequence[str]


#: Findings first, then regions and amounts.
DiffReport = Report[Sequence[Table], DiffExtra]


def diff(a: Side, b: Side, *, everything: bool = False) -> DiffReport:
    """Compare two sides. Parts that only one side has are not compared, and make the report partial.

    :param everything: also include equal values in the tables.
    """
    found_amounts = amounts(a, b)
    found = findings(a, b, found_amounts)
    missing = lacks(a, b)
    regions = [row for row in region_rows(a, b) if everything or row.differs]
    tables: List[Table] = [
        Table("findings", _FINDING_COLUMNS, found, "findings"),
        Table("regions", REGION_COLUMNS, regions, "regions"),
    ]
    for item in found_amounts:
        rows = [row for row in item.rows() if everything or row.change]
        if rows:
            tables.append(Table(item.key, item.columns, rows, item.title))
    saved = [f"{s}: a saved layout only has regions" for s, side in (("A", a), ("B", b)) if side.saved_layout]
    differs = any(row.kind != "same" for row in found)
    return Report(
        command="diff",
        kernel=None,
        tables=tables,
        head=(f"A  {_who(a)}", f"B  {_who(b)}"),
        notes=[*saved, *(f"not compared: {lack}" for lack in missing)],
        partial=bool(missing),
        extra={
            "a": {"label": a.label, **a.identity},
            "b": {"label": b.label, **b.identity},
            "same": False if differs else None if missing else True,
            "compared": compared(a, b),
            "not_compared": missing,
        },
    )


def _who(side: Side) -> str:
    def switch(value: Known) -> str:
        return "unknown" if value is None else "on" if value else "off"

    who = side.identity
    return (
        f"Linux {who.get('release') or 'of unknown release'}, {who.get('paging_levels')} levels, "
        f"KASLR {switch(who.get('kaslr'))}, PTI {switch(who.get('isolation'))}   {side.label}"
    )
