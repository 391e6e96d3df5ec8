# SPDX-License-Identifier: LGPL-2.1-or-later
"""The thread that answers the browser's questions."""

from __future__ import annotations

import subprocess
import sys

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
