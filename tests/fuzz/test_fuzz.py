# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ten thousand damaged inputs: no traceback, no hang, less than a gigabyte, no unmapped address called
mapped.

``--thorough`` runs all of them; other runs take the first half of each target. KVINTRO_FUZZ=N runs N times as
many, KVINTRO_FUZZ_SEED=N different ones; each failure names its seed and number.
"""

from __future__ import annotations

import os
import random
import time
from typing import Tuple

import pytest

from kvintro.commands import command_names
from tests import timing
from tests.fuzz import harness
from tests.fuzz.hypervisors import Hypervisors
from tests.fuzz.other import OtherArchitectures
from tests.fuzz.packed import Packed
from tests.fuzz.saved import SavedGuests
from tests.fuzz.sizes import FlattenedRecords, LyingSizes, StandardInput
from tests.fuzz.targets import NOT_ASKED, QUESTIONS, SAMPLE, Real
from tests.fuzz.targets import TARGETS as ON_KERNELS

TIMES = int(os.environ.get("KVINTRO_FUZZ", "1"))
SEED = int(os.environ.get("KVINTRO_FUZZ_SEED", "0"))
TARGETS = (
    *ON_KERNELS,
    LyingSizes(),
    FlattenedRecords(),
    StandardInput(),
    SavedGuests(),
    Hypervisors(),
    Packed(),
    OtherArchitectures(),
)
WORKERS = min(os.cpu_count() or 1, 8)


def test_there_are_enough_cases() -> None:
    assert sum(target.cases for target in TARGETS) >= 10_000


def test_every_command_is_asked() -> None:
    assert set(command_names()) <= {*QUESTIONS, *NOT_ASKED}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged(target: harness.Target, pytestconfig: pytest.Config) -> None:
    if isinstance(target, Real) and not SAMPLE.exists():
        pytest.skip("the sample dump is not there")
    share = 1 if pytestconfig.getoption("--thorough") else 2
    count = -(-target.cases // share) * TIMES
    outcome = harness.run(target, count, SEED, WORKERS)
    print(
        f"{target.name}: {outcome.done} cases, {outcome.refused} refused, "
        f"slowest {outcome.slowest:.2f} s, {outcome.memory >> 20} MB"
    )
    # One of each kind, because the same bug appears many times.
    kinds = {_kind(failure): failure for failure in outcome.failures}
    shown = "\n\n".join(f"seed {SEED}, number {f.number}: {f.what}" for f in list(kinds.values())[:5])
    assert not outcome.failures, f"{len(outcome.failures)} failures\n{shown}"
    assert outcome.done == count


def _kind(failure: harness.Failure) -> Tuple[str, ...]:
    lines = failure.what.splitlines()
    return (lines[-1].split(":")[0], *[line for line in lines if "/kvintro/" in line][-1:])


# Tests of the harness itself: it catches what it should catch.


class _Bad(harness.Target):
    name, cases = "bad", 5

    def run(self, chosen: random.Random) -> None:
        value = chosen.random()
        number = next(n for n in range(5) if harness.generator(self, 0, n).random() == value)
        if number == 0:
            raise ZeroDivisionError
        if number == 1:
            os.abort()
        if number == 2:
            while True:
                pass
        if number == 3:
            _spend(0.5)
        if number == 4:
            for _ in range(5):
                harness.next_question()
                _spend(0.1)


def _spend(seconds: float) -> None:
    """Use processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_harness_catches_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0.3)
    monkeypatch.setattr(timing, "reference", lambda: 0)
    outcome = harness.run(_Bad(), 5, 0, workers=1)
    assert outcome.done == 5
    found = {failure.number: failure.what for failure in outcome.failures}
    assert "ZeroDivisionError" in found[0]
    assert "SIGABRT" in found[1]
    assert "no end after" in found[2]
    assert "for a question, more than 0.3 s" in found[3]
    # The last one runs five commands, each within its time.
    assert set(found) == {0, 1, 2, 3}


def test_a_slower_machine_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit follows the reference, measured after a slow command, but never falls below its base."""
    for times, expected in ((0.5, 5), (1, 5), (3, 15), (100, 30)):
        monkeypatch.setattr(timing, "reference", lambda times=times: times * timing.REFERENCE)
        assert timing.allowed(5) == pytest.approx(expected)
