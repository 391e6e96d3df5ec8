# SPDX-License-Identifier: LGPL-2.1-or-later
"""Contradictions within the kernel: findings first, then the applied rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Callable, Iterable, List, Mapping, Optional, Sequence, Tuple, TypedDict

from kvintro.kernels import Kernel
from kvintro.model import Address, Column, Report, Size, Table
from kvintro.queries.audit import SEVERITIES, Check, audit


@dataclass(frozen=True)
class FindingRow:
    """A finding of a rule; docs/check.md describes the rules.

    :ivar severity: ``defect``, ``warning`` or ``notice``.
    :ivar rule: key of the broken rule.
    :ivar what: the evidence.
    :ivar start: first address; None if the finding is not about addresses.
    :ivar end: last address; None if only the start matters.
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
    :ivar findings: number of its findings.
    :ivar compared: number of things compared; a rule that compared nothing is not ``ok``.
    :ivar unknown: what could not be compared, and why; None if everything was.
    """

    key: str
    state: str
    title: str
    detail: str
    findings: int
    compared: int
    unknown: Optional[str]


class CheckExtra(TypedDict):
    """Further values of the report.

    :ivar counts: number of findings by severity.
    """

    counts: Mapping[str, int]


CheckReport = Report[Tuple[Table[FindingRow], Table[CheckRow]], CheckExtra]

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
) -> CheckReport:
    """Apply all rules.

    :param progress: gets the rules and yields them again while they are applied.
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
        # A defect is a complete answer, even if something else could not be compared.
        partial=not failed and any(row.unknown is not None for row in rows),
        negative=failed,
        extra={"counts": {severity: counts[severity] for severity in SEVERITIES}},
    )
