# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a running kernel shows for a moment is no finding."""

from __future__ import annotations

from typing import Any, Iterator, List

import pytest

from kvintro.queries import audit
from kvintro.queries.audit import Check, Finding
from kvintro.queries.audit.verdict import conclude


class Live:
    """As much of a kernel as :func:`audit` itself looks at."""

    def __init__(self, source: Any) -> None:
        self.source = source


class Source:
    kind = "live"
    live = True


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(audit, "_PAUSE", 0)

    def run(*rounds: List[Finding]) -> Any:
        turns: Iterator[List[Finding]] = iter(rounds)
        rule = Check("rule", "a rule", lambda kernel: conclude(next(turns), "", "looked"))
        monkeypatch.setattr(audit, "CHECKS", (rule,))
        ((_, verdict),) = audit.audit(Live(Source()))  # type: ignore[arg-type]
        return verdict, list(turns)

    return run


LASTING, PASSING, OTHER = (Finding(at, at, "here") for at in (0x1000, 0x2000, 0x3000))


def test_what_is_there_every_time_stays(settled: Any) -> None:
    verdict, left = settled([LASTING, PASSING], [LASTING], [OTHER, LASTING], *[[LASTING]] * 7)
    assert (verdict.state, verdict.findings, left) == ("failed", (LASTING,), [])


def test_what_moves_goes(settled: Any) -> None:
    verdict, left = settled([PASSING], [OTHER], [LASTING])
    assert (verdict.state, verdict.findings, left) == ("ok", (), [[LASTING]])


def test_no_second_look_at_what_is_no_defect(settled: Any) -> None:
    off = Finding(None, None, "off", "warning")
    verdict, left = settled([off], [])
    assert (verdict.state, verdict.findings, left) == ("warning", (off,), [[]])


def test_the_worst_finding_names_the_state() -> None:
    off, note = Finding(None, None, "off", "warning"), Finding(None, None, "so", "notice")
    assert conclude([note, off, LASTING], "", "").state == "failed"
    assert conclude([note, off], "", "").state == "warning"
    assert conclude([note], "half", "").state == "notice"
    assert conclude([], "half", "all").detail == "all; half"
