# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes of a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.readers.structures import TROUBLE

#: From what contradicts itself, over a protection that is off, to what is worth knowing.
SEVERITIES = ("defect", "warning", "notice")
#: Findings kept at most for each rule; damaged tables can break a rule in millions of places.
MOST = 1 << 14
_TOLD = 5  # reasons that are told of one rule


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
    """What came of one rule. Its state follows from the rest: only what was compared can be ``ok``.

    :ivar looked: what was compared, and how much of it.
    :ivar compared: how many things were compared.
    :ivar unknown: what could not be compared, and why; empty if everything was.
    :ivar changing: ``unknown`` may pass: the source changed while it was read.
    :ivar applies: False if this kernel or source has nothing that the rule is about; ``looked`` says why.
    """

    looked: str
    compared: int = 0
    findings: Tuple[Finding, ...] = ()
    unknown: str = ""
    changing: bool = False
    applies: bool = True

    @property
    def state(self) -> str:
        """``ok``, ``failed`` (a defect), ``warning``, ``notice``, ``unknown`` or ``not-applicable``."""
        if self.findings:
            worst = min(SEVERITIES.index(finding.severity) for finding in self.findings)
            return ("failed", "warning", "notice")[worst]
        if not self.applies:
            return "not-applicable"
        return "unknown" if self.missing else "ok"

    @property
    def missing(self) -> str:
        """What could not be compared, and why; empty if something was compared and nothing was left out."""
        if self.unknown or self.compared > 0 or not self.applies:
            return self.unknown
        return "there was nothing to compare"

    @property
    def detail(self) -> str:
        """How much was compared, and what could not be."""
        return "; ".join(filter(None, (self.looked, self.missing)))

    @property
    def defects(self) -> Tuple[Finding, ...]:
        """The findings that are defects."""
        return tuple(finding for finding in self.findings if finding.severity == "defect")


def not_applicable(why: str) -> Verdict:
    """The verdict of a rule about something that this kernel or source does not have."""
    return Verdict(why, applies=False)


class Tally:
    """Adds up what a rule compares, part by part, and makes the verdict of it.

    :ivar findings: what was found; the rule appends to it.
    :param noun: what is counted, in the plural.
    """

    def __init__(self, noun: str = "entries") -> None:
        self.findings: List[Finding] = []
        self._noun = noun
        self._counts: Dict[str, int] = {}
        self._lacks: Dict[str, None] = {}
        self._changing = False

    @property
    def full(self) -> bool:
        """Whether there are as many findings as are kept of one rule."""
        return len(self.findings) >= MOST

    @property
    def parts(self) -> Sequence[str]:
        """What was compared, by the names of the parts."""
        return tuple(self._counts)

    def compared(self, part: str, count: int, *, may_be_empty: bool = False) -> None:
        """So many things of a part were compared.

        :param may_be_empty: none is an answer, too; else it means that the part could not be read.
        """
        self._counts[part] = self._counts.get(part, 0) + count
        if not count and not may_be_empty:
            self.lacks(f"nothing was found to compare of {part}")

    def lacks(self, why: str, *, changing: bool = False) -> None:
        """Something could not be compared.

        :param changing: because the source changed while it was read.
        """
        self._lacks[why] = None
        self._changing |= changing

    def verdict(self, looked: Optional[str] = None) -> Verdict:
        """The verdict.

        :param looked: what was compared, in place of the parts and their counts.
        """
        if looked is None:
            noun = f" {self._noun}"
            parts = []
            for part, count in self._counts.items():
                parts.append(f"{count}{noun} of {part}" if part else f"{count}{noun}")
                noun = ""
            looked = ", ".join(parts)
        lacks = list(self._lacks)
        more = [f"and {len(lacks) - _TOLD} more"] if len(lacks) > _TOLD else []
        return Verdict(
            looked,
            sum(self._counts.values()),
            tuple(self.findings[:MOST]),
            "; ".join([*lacks[:_TOLD], *more]),
            self._changing,
        )


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
            return Verdict("", unknown=error.what)
        except TROUBLE as error:
            # What was read contradicts itself.
            return Verdict("", unknown=" ".join(str(error).split()) or type(error).__name__)
