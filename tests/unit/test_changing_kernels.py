# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel that changes while it is read: read again a limited number of times, then marked."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from types import SimpleNamespace
from typing import Any, Callable, List

import drgn
import pytest

from kvintro import commands
from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.cli import main
from kvintro.errors import NotInDump, Unavailable, UsageError
from kvintro.model import Report
from kvintro.readers.bounds import Budget, bounded
from tests.timing import allowed

ARGS = argparse.Namespace(command="layout")
WHOLE = Report("layout", None, ())
PARTIAL = Report("layout", None, (), partial=True)
FAULT = drgn.FaultError("address is not mapped", 0xFFFF888000000000)
GONE = NotInDump(0x1000, 8, physical=True)


class _Kernel:
    arch = ARCHITECTURE

    def __init__(self, source: Any) -> None:
        self.source = source

    def once(self, read: Callable[[Any], Any]) -> Any:
        return read(self)

    def fresh(self) -> "_Kernel":
        return _Kernel(self.source)


def _run(monkeypatch: pytest.MonkeyPatch, *answers: Any, live: bool = True) -> "tuple[Any, List[Any]]":
    """The result of a command that gives these answers, and the kernels that it got."""
    seen: List[Any] = []
    left = list(answers)

    def run(kernel: Any, args: argparse.Namespace) -> Any:
        seen.append(kernel)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(commands, "load_command", lambda name: SimpleNamespace(run=run))
    source = SimpleNamespace(live=live, kind="core", left_out=None, check_size=lambda: None)
    kernel: Any = _Kernel(source)
    return commands.run_command(kernel, ARGS), seen


@pytest.mark.parametrize("first", [PARTIAL, FAULT, GONE, Unavailable("gone")])
def test_asked_again(monkeypatch: pytest.MonkeyPatch, first: Any) -> None:
    found, kernels = _run(monkeypatch, first, WHOLE)
    assert found is WHOLE
    assert len({id(kernel) for kernel in kernels}) == 2, "what the first attempt had read is not kept"


def test_marked_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found, kernels = _run(monkeypatch, PARTIAL, FAULT, PARTIAL)
    assert len(kernels) == commands.ATTEMPTS
    assert found.partial
    assert "even after retries" in found.notes[-1]


def test_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="changed while it was read"):
        _run(monkeypatch, FAULT, FAULT, FAULT)
    with pytest.raises(NotInDump):
        _run(monkeypatch, GONE, GONE, GONE)


@pytest.mark.parametrize(("partial", "code"), [(1, 0), (9, 4)])
def test_the_command_line_asks_again_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], partial: int, code: int
) -> None:
    """A running kernel that is consistent at the second try, and one that never is."""
    answers = [PARTIAL] * partial + [WHOLE]
    monkeypatch.setattr("kvintro.commands.layout.run", lambda kernel, args: answers.pop(0))
    monkeypatch.setattr(
        "kvintro.opening.open_kernel",
        lambda request: _Kernel(SimpleNamespace(live=True, check_size=lambda: None)),
    )
    assert main(["layout", "--json"]) == code
    assert ("even after retries" in capsys.readouterr().out) is (code == 4)
    assert len(answers) == (0 if partial == 1 else partial + 1 - commands.ATTEMPTS)


def test_mistakes_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError):
        _run(monkeypatch, UsageError("no such symbol", ""))
    with pytest.raises(ZeroDivisionError):
        _run(monkeypatch, ZeroDivisionError())


def test_dumps_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    found, kernels = _run(monkeypatch, PARTIAL, live=False)
    assert found is PARTIAL
    assert len(kernels) == 1


# drgn's helpers that never end


def test_what_goes_in_circles_ends() -> None:
    def step() -> None:
        pass

    before = sys.getprofile()
    with pytest.raises(Unavailable, match="the search did not end"), bounded(0.1):
        while True:
            step()
    assert sys.getprofile() is before


def test_what_ends_by_itself_is_left_alone() -> None:
    before = sys.getprofile()
    with bounded(60):
        assert sorted([3, 1, 2]) == [1, 2, 3]
    assert sys.getprofile() is before


def test_what_catches_everything_and_goes_on_ends_too() -> None:
    def step() -> None:
        pass

    with pytest.raises(Unavailable, match="the search did not end"), bounded(0.1):
        while True:
            with contextlib.suppress(Exception):
                step()


def test_waiting_ends() -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match="the search did not end"), bounded(0.01):
        while True:
            time.sleep(0.001)
    assert time.monotonic() - started > 0.05


def test_a_budget_is_for_all_questions_together() -> None:
    budget = Budget(0.3, 0.001)
    started = time.thread_time()
    for _ in range(100):
        budget.question()
        with pytest.raises(Unavailable), budget.bounded():
            while True:
                time.thread_time()
    assert 0.3 <= time.thread_time() - started < allowed(1)


def test_a_budget_is_not_used_up_by_honest_questions() -> None:
    budget = Budget(0.5, 0.01)
    for _ in range(200):
        budget.question()
        with budget.bounded():
            spent = time.thread_time() + 0.005
            while time.thread_time() < spent:
                pass
    assert not budget.spent
