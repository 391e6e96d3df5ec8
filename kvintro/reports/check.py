# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel against itself: findings first, and the rules that were applied."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Callable, Iterable, List, Optional, Sequence

from kvintro.kernel import Kernel
from kvintro.model import Address, Column, Report, Size, Table
from kvintro.queries.audit import SEVERITIES, Check, audit


@dataclass(frozen=True)
class FindingRow:
    """Something that is not as it should be; docs/check.md has the rules.

    :ivar severity: ``defect``, ``warning`` or ``notice``.
    :ivar rule: key of the rule that it breaks.
    :ivar what: the evidence.
    :ivar start: where; None for what has no place.
    :ivar end: last address, None where only the start is of interest.
    """

    severity: str
    rule: str
    what: str
    start: Optional[Address]
    end: Optional[Address]
    size: Optional[Size]


@dataclass(frozen=True)
class CheckRow:
    """One rule.

    :ivar detail: what was compared, and what could not be.
    :ivar findings: how many of the findings are its.
    :ivar compared: how many things were compared; a rule that compared nothing is not ``ok``.
    :ivar unknown: what could not be compared, and why; None if everything was.
    """

    key: str
    state: str
    title: str
    detail: str
    findings: int
    compared: int
    unknown: Optional[str]


FINDING_COLUMNS = (
    Column("severity", "severity"),
    Column("rule", "rule"),
    Column("what", "what"),
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
)
COLUMNS = (
    Column("state", "state"),
    Column("title", "rule"),
    Column("key", "key"),
    Column("findings", "findings", "right"),
    Column("detail", "looked at"),
)


def check(
    kernel: Kernel, *, progress: Callable[[Sequence[Check]], Iterable[Check]] = lambda checks: checks
) -> Report:
    """Apply all rules.

    :param progress: is handed the rules, and iterated over while they are applied.
    """
    rows: List[CheckRow] = []
    findings: List[FindingRow] = []
    for rule, verdict in audit(kernel, progress=progress):
        rows.append(
            CheckRow(
                key=rule.key,
                state=verdict.state,
                title=rule.title,
                detail=verdict.detail,
                findings=len(verdict.findings),
                compared=verdict.compared,
                unknown=verdict.missing or None,
            )
        )
        findings += [
            FindingRow(
                severity=found.severity,
                rule=rule.key,
                what=found.what,
                start=None if found.start is None else Address(found.start),
                end=None if found.end is None else Address(found.end),
                size=None if found.start is None or found.end is None else Size(found.end - found.start + 1),
            )
            for found in verdict.findings
        ]
    findings.sort(key=lambda row: SEVERITIES.index(row.severity))
    counts = Counter(row.severity for row in findings)
    failed = bool(counts["defect"])
    return Report(
        command="check",
        kernel=kernel.identity,
        tables=(
            Table("findings", FINDING_COLUMNS, findings, "findings"),
            Table("checks", COLUMNS, rows, "rules"),
        ),
        notes=tuple(kernel.source.warnings),
        # A defect is an answer, whatever else could not be looked at.
        partial=not failed and any(row.unknown is not None for row in rows),
        negative=failed,
        extra={"counts": {severity: counts[severity] for severity in SEVERITIES}},
    )
