# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes of a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.readers.structures import TROUBLE

#: From what contradicts itself, over a protection that is off, to what is worth knowing.
SEVERITIES = ("defect", "warning", "notice")
#: Findings kept at most for each rule; damaged tables can break a rule in millions of places.
MOST = 1 << 14


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found, with the evidence.

    :ivar start: where, None for what has no place.
    :ivar end: last address.
    :ivar severity: of :data:`SEVERITIES`.
    """

    start: Optional[int]
    end: Optional[int]
    what: str
    severity: str = "defect"


@dataclass(frozen=True)
class Verdict:
    """What came of one rule.

    :ivar state: ``ok``, ``failed`` (there is a defect), ``warning``, ``notice``, ``unknown`` (this source
        does not tell) or ``not-applicable``.
    :ivar detail: how much was looked at, or why nothing was.
    """

    state: str
    detail: str
    findings: Tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Check:
    """A rule.

    :ivar key: its name in JSON.
    :ivar title: the rule itself, one line.
    :ivar live: whether it can only be asked of the kernel that this process runs on.
    """

    key: str
    title: str
    judge: Callable[[Kernel], Verdict]
    live: bool = False

    def verdict(self, kernel: Kernel) -> Verdict:
        """Apply it; what cannot be read makes it unknown."""
        try:
            return self.judge(kernel)
        except Unavailable as error:
            return Verdict("unknown", error.what)
        except TROUBLE as error:
            # What was read contradicts itself.
            return Verdict("unknown", " ".join(str(error).split()) or type(error).__name__)


def conclude(findings: Sequence[Finding], unknown: str, detail: str) -> Verdict:
    """The verdict that findings make.

    :param unknown: what could not be looked at; empty if all was.
    """
    if findings:
        worst = min(SEVERITIES.index(finding.severity) for finding in findings)
        state = ("failed", "warning", "notice")[worst]
        return Verdict(state, detail, tuple(findings[:MOST]))
    if unknown:
        return Verdict("unknown", f"{detail}; {unknown}")
    return Verdict("ok", detail)
