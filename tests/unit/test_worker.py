# SPDX-License-Identifier: LGPL-2.1-or-later
"""The thread that answers the browser's questions."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any, Iterator, List

import pytest

from kvintro.browse.worker import Answer, Question, Worker
from kvintro.readers.bounds import bounded
from tests.conftest import ROOT

CANCELLED_AT_ITS_END = """
import sys, threading
from kvintro.browse.worker import Question, Worker

worker = Worker()
for _ in range(100):
    started, finish = threading.Event(), threading.Event()

    def ask():
        started.set()
        finish.wait()

    worker.ask(Question("lane", "text", ask, lambda answer: None))
    started.wait()
    # The interrupt waits until the question's last call returns, so it arrives as the question ends.
    worker.cancel()
    finish.set()
worker.stop()

def function():
    return "returned"

sys.setprofile(lambda *event: None)
print(function())
"""


def test_a_cancelled_question_leaves_nothing_pending() -> None:
    """Python 3.11 never left a function that was called later while a profile function was set."""
    command = [sys.executable, "-c", CANCELLED_AT_ITS_END]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "returned\n"


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stop()


class Asker:
    """Asks questions of a worker and keeps the answers."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.answers: List[Answer] = []
        self._answered = threading.Condition()

    def ask(self, lane: str, question: Any, *, patient: bool = False) -> None:
        """Ask a question."""
        self.worker.ask(Question(lane, lane, question, self._done, patient))

    def wait(self, count: int) -> List[Any]:
        """Wait for this many answers; the values of all."""
        with self._answered:
            assert self._answered.wait_for(lambda: len(self.answers) >= count, 60), self.worker.busy
            return [answer.value for answer in self.answers]

    def _done(self, answer: Answer) -> None:
        with self._answered:
            self.answers.append(answer)
            self._answered.notify()


def _forever(begun: threading.Event) -> None:
    begun.set()
    while True:
        time.sleep(0)


def _profiled() -> str:
    def called() -> str:
        return "called"

    with bounded(60):
        return called()


def test_answers_come_in_order(worker: Worker) -> None:
    asker = Asker(worker)
    for number in range(20):
        asker.ask(str(number), lambda number=number: number)
    assert asker.wait(20) == list(range(20))
    asker.ask("error", lambda: 1 // 0)
    asker.wait(21)
    assert isinstance(asker.answers[-1].error, ZeroDivisionError)


def test_the_next_question_works_after_an_interruption(worker: Worker) -> None:
    """Also one that calls functions while there is a profile function, as searches of drgn's helpers do."""
    asker = Asker(worker)
    for number in range(1, 6):
        begun = threading.Event()
        asker.ask("long", lambda begun=begun: _forever(begun))
        assert begun.wait(60)
        asker.ask("long", _profiled)
        assert asker.wait(number) == ["called"] * number
    worker.cancel()
    asker.ask("long", _profiled)
    assert asker.wait(6) == ["called"] * 6


def test_a_patient_question_yields_and_starts_again(worker: Worker) -> None:
    asker = Asker(worker)
    begun, goes_on = threading.Event(), threading.Event()

    def patient() -> str:
        begun.set()
        while not goes_on.is_set():
            time.sleep(0)
        return "patient"

    asker.ask("patient", patient, patient=True)
    assert begun.wait(60)
    asker.ask("quick", _profiled)
    assert asker.wait(1) == ["called"]
    goes_on.set()
    assert asker.wait(2) == ["called", "patient"]
