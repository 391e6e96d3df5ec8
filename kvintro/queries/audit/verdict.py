# SPDX-License-Identifier: LGPL-2.1-or-later
"""The results of rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.readers.structures import TROUBLE

#: In this order: a contradiction; a protection that is off; something else that is worth knowing.
SEVERITIES = ("defect", "warning", "notice")
#: Maximum number of findings kept per rule; damaged tables can break a rule in millions of places.
MOST = 1 << 14
_TOLD = 5  # maximum number of reasons shown per rule


@dataclass(frozen=True)
class Finding:
    """One finding of a rule, with the evidence.

    :ivar start: first address, None if the finding has no address.
    :ivar end: last address.
    :ivar severity: one of :data:`SEVERITIES`.
    """

    start: Optional[int]
    end: Optional[int]
    what: str
    severity: str = "defect"


@dataclass(frozen=True)
class Verdict:
    """The result of one rule. Its state is derived from the fields: without a comparison it is never ``ok``.

    :ivar looked: what was compared, and how much of it.
    :ivar compared: number of things that were compared.
    :ivar unknown: what could not be compared, and why; empty if everything was.
    :ivar changing: whether ``unknown`` may be temporary, because the source changed while it was read.
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
        """What could not be compared, and why; empty if something was compared and nothing is missing."""
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
    """Return the verdict of a rule about something that this kernel or source does not have."""
    return Verdict(why, applies=False)


class Tally:
    """Collects comparisons and findings of a rule, part by part, and makes the verdict.

    :ivar findings: findings so far; the rule appends to it.
    :param noun: plural noun for what is counted.
    """

    def __init__(self, noun: str = "entries") -> None:
        self.findings: List[Finding] = []
        self._noun = noun
        self._counts: Dict[str, int] = {}
        self._lacks: Dict[str, None] = {}
        self._changing = False

    @property
    def full(self) -> bool:
        """Whether the limit of findings per rule is reached."""
        return len(self.findings) >= MOST

    @property
    def parts(self) -> Sequence[str]:
        """Names of the parts that were compared."""
        return tuple(self._counts)

    def compared(self, part: str, count: int, *, may_be_empty: bool = False) -> None:
        """Add a number of compared things of a part.

        :param may_be_empty: whether 0 is valid; otherwise it means that the part could not be read.
        """
        self._counts[part] = self._counts.get(part, 0) + count
        if not count and not may_be_empty:
            self.lacks(f"nothing was found to compare for {part}")

    def lacks(self, why: str, *, changing: bool = False) -> None:
        """Note that something could not be compared.

        :param changing: whether the reason is that the source changed while it was read.
        """
        self._lacks[why] = None
        self._changing |= changing

    def verdict(self, looked: Optional[str] = None) -> Verdict:
        """Return the verdict.

        :param looked: what was compared; replaces the parts and their counts.
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


class Said(NamedTuple):
    """A value that both VMCOREINFO and the kernel's memory have.

    :ivar key: key in VMCOREINFO.
    :ivar name: name of the variable or symbol.
    :ivar read: reads it; raises :class:`~kvintro.errors.Unavailable`.
    :ivar mask: mask of the bits that count.
    """

    key: str
    name: str
    read: Callable[[Kernel], int]
    mask: int = ALL


@dataclass(frozen=True)
class Check:
    """A rule.

    :ivar key: name of the rule in JSON.
    :ivar title: the rule in one line.
    :ivar live: whether it applies only to the kernel that this process runs on.
    """

    key: str
    title: str
    judge: Callable[[Kernel], Verdict]
    live: bool = False

    def verdict(self, kernel: Kernel) -> Verdict:
        """Apply the rule. If something cannot be read, the result is unknown."""
        try:
            return self.judge(kernel)
        except Unavailable as error:
            return Verdict("", unknown=error.what)
        except TROUBLE as error:
            # The data contradicts itself.
            return Verdict("", unknown=" ".join(str(error).split()) or type(error).__name__)
