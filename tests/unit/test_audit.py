# SPDX-License-Identifier: LGPL-2.1-or-later
"""A momentary state of a running kernel is not a finding."""

from __future__ import annotations

from typing import Any, Iterator

import pytest

from kvintro.queries import audit
from kvintro.queries.audit import Check, Finding, Verdict
from kvintro.queries.audit.verdict import Tally


class Live:
    """The parts of a kernel that :func:`audit` itself uses."""

    arch = None

    def __init__(self, source: Any) -> None:
        self.source = source

    def fresh(self) -> "Live":
        return Live(self.source)


class Source:
    kind = "live"
    live = True


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(audit, "_PAUSE", 0)

    def run(*rounds: Any) -> Any:
        turns: Iterator[Any] = iter(rounds)

        def judge(kernel: Any) -> Verdict:
            turn = next(turns)
            return turn if isinstance(turn, Verdict) else Verdict("looked", 1, tuple(turn))

        monkeypatch.setattr(audit, "checks_of", lambda arch: (Check("rule", "a rule", judge),))
        ((_, verdict),) = audit.audit(Live(Source()))  # type: ignore[arg-type]
        return verdict, list(turns)

    return run


LASTING, PASSING, OTHER = (Finding(at, at, "here") for at in (0x1000, 0x2000, 0x3000))


def test_what_is_there_every_time_stays(settled: Any) -> None:
    verdict, left = settled([LASTING, PASSING], [LASTING], [OTHER, LASTING], *[[LASTING]] * 7)
    assert (verdict.state, verdict.findings, left) == ("failed", (LASTING,), [])


def test_what_moves_goes(settled: Any) -> None:
    verdict, left = settled([PASSING], [OTHER], [], [LASTING])
    assert (verdict.state, verdict.findings, left) == ("ok", (), [[LASTING]])


def test_something_else_each_time_is_not_ok(settled: Any) -> None:
    """Each of ten tries found a defect, so the rule was never seen to hold."""
    verdict, left = settled(*[[PASSING], [OTHER]] * 5)
    assert (verdict.state, verdict.findings, left) == ("unknown", (), [])
    assert "each of 10 attempts found a different problem" in verdict.detail


CHANGING = Verdict("5 entries", 5, unknown="the file changed", changing=True)


def test_what_changed_is_asked_for_again(settled: Any) -> None:
    verdict, left = settled(CHANGING, CHANGING, [], [LASTING])
    assert (verdict.state, left) == ("ok", [[LASTING]])


def test_what_always_changes_is_unknown(settled: Any) -> None:
    verdict, left = settled(*[CHANGING] * 10)
    assert (verdict.state, verdict.detail, left) == ("unknown", "5 entries; the file changed", [])


def test_what_cannot_be_read_is_not_asked_for_again(settled: Any) -> None:
    verdict, left = settled(Verdict("", unknown="no types"), [])
    assert (verdict.state, left) == ("unknown", [[]])


def test_no_second_look_at_what_is_no_defect(settled: Any) -> None:
    off = Finding(None, None, "off", "warning")
    verdict, left = settled([off], [])
    assert (verdict.state, verdict.findings, left) == ("warning", (off,), [[]])


def test_the_worst_finding_names_the_state() -> None:
    off, note = Finding(None, None, "off", "warning"), Finding(None, None, "so", "notice")
    assert Verdict("", 1, (note, off, LASTING)).state == "failed"
    assert Verdict("", 1, (note, off)).state == "warning"
    assert Verdict("", 1, (note,), "half").state == "notice"
    assert Verdict("all", 1, (), "half").detail == "all; half"


def test_nothing_compared_is_never_ok() -> None:
    assert Verdict("the whole kernel half").state == "unknown"
    assert "nothing to compare" in Verdict("the whole kernel half").detail
    assert Verdict("", 1).state == "ok"
    assert Verdict("", 1, unknown="a part").state == "unknown"
    assert Verdict("off", applies=False).state == "not-applicable"


def test_a_part_of_which_nothing_was_compared_is_missed() -> None:
    tally = Tally("pages")
    tally.compared("one", 3)
    assert (tally.verdict().state, tally.verdict().looked) == ("ok", "3 pages of one")
    tally.compared("other", 0)
    assert tally.verdict().state == "unknown"
    assert "nothing was found to compare for other" in tally.verdict().detail


def test_an_empty_part_may_be_an_answer() -> None:
    tally = Tally("pages")
    tally.compared("one", 0, may_be_empty=True)
    assert tally.verdict().state == "unknown"
    tally.compared("other", 2)
    assert (tally.verdict().state, tally.verdict().looked) == ("ok", "0 pages of one, 2 of other")
