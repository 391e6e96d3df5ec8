# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run thousands of damaged inputs, each within limits, in processes that may die.

A target makes one case from a random generator and raises if something is wrong. This module checks what is
wrong for every target: an exception that is not an error message, more than :data:`SECONDS` of time, more
than :data:`MEMORY` of memory, or the death of the process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from kvintro.errors import KvintroError
from tests import timing

#: Limit of processor time for a command, on the machine of the figures in docs/untrusted.md.
SECONDS = 5
MEMORY = 1 << 30
_FAILURES_KEPT = 20
#: Seconds of wall-clock time without output from a process: it hangs in a library, where signals have no
#: effect.
_SILENCE = 600


class Hang(BaseException):
    """A case exceeded its time. Not an Exception, so that no other code catches it."""


class Target:
    """One kind of input."""

    name: str
    #: Number of cases; the tests of every change run the first half.
    cases: int
    #: A directory for files, which is removed after all cases, even if processes died.
    scratch: Path

    def prepare(self) -> None:
        """Prepare what all cases of a process share."""

    def run(self, chosen: random.Random) -> None:
        """Run one case.

        :raises KvintroError: the input was refused, which is an answer.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Failure:
    """A case that failed; the seed and the number reproduce it."""

    number: int
    what: str


@dataclass
class Outcome:
    """The results of a target's cases."""

    done: int = 0
    refused: int = 0
    slowest: float = 0
    memory: int = 0
    failures: "List[Failure]" = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.failures = self.failures or []


class _Clock:
    """Measures the commands of a case, each of which has its own limit."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._started = time.process_time()

    def next(self) -> None:
        """A command begins."""
        self.stop()
        # Processor time, not wall-clock time, so that other processes do not count. This ends endless loops.
        signal.setitimer(signal.ITIMER_PROF, SECONDS * timing.SLOWEST)

    def stop(self) -> None:
        """The last command has ended."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        now = time.process_time()
        self.longest = max(self.longest, now - self._started)
        self._started = now

    def begin(self) -> None:
        """A case begins."""
        self._started = time.process_time()
        self.longest = 0.0
        self.next()


_clock = _Clock()


def next_question() -> None:
    """Restart the time: a case may run more than one command."""
    _clock.next()


def generator(target: Target, seed: int, number: int) -> random.Random:
    """The random generator of one case, independent of earlier cases."""
    return random.Random(f"{target.name}/{seed}/{number}")


def run(target: Target, count: int, seed: int, workers: int = 2) -> Outcome:
    """Run cases 0 to ``count`` - 1."""
    with tempfile.TemporaryDirectory(prefix="kvintro-fuzz-") as scratch:
        target.scratch = Path(scratch)
        return _run(target, count, seed, workers)


def _run(target: Target, count: int, seed: int, workers: int) -> Outcome:
    outcome = Outcome()
    running = [_Worker(target, range(first, count, workers), seed) for first in range(workers)]
    while running:
        ready, _, _ = select.select([w.file for w in running], [], [], 1)
        for worker in list(running):
            ended = worker.file in ready and worker.take(outcome)
            if not ended and time.monotonic() - worker.heard > _SILENCE + worker.grace:
                # The process hangs in a library's code, where our signals have no effect.
                worker.kill()
                ended = True
                worker.fault = "no end in sight"
            if ended:
                running.remove(worker)
                again = worker.end(outcome)
                if again is not None and len(outcome.failures) < _FAILURES_KEPT:
                    running.append(again)
    return outcome


class _Worker:
    """A process that runs its share of the cases."""

    def __init__(self, target: Target, numbers: Sequence[int], seed: int) -> None:
        self.target, self.numbers, self.seed = target, list(numbers), seed
        self.grace = 600  # until the first case: preparations
        self.heard = time.monotonic()
        self.fault: Optional[str] = None
        self._rest = b""
        self._current: Optional[int] = None
        self._finished = False
        receiver, sender = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(receiver)
            code = 1
            try:
                _work(target, self.numbers, seed, sender)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(sender)
        self.file = os.fdopen(receiver, "rb", buffering=0)

    def take(self, outcome: Outcome) -> bool:
        """Read the process's output; return whether it ended."""
        data = self.file.read(1 << 16)
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._note(json.loads(line), outcome)
        return not data

    def _note(self, message: Dict[str, Any], outcome: Outcome) -> None:
        if "start" in message:
            self._current = message["start"]
            self.grace = 0
        elif "end" in message:
            self._current = None
            outcome.done += 1
            outcome.refused += message["refused"]
            outcome.slowest = max(outcome.slowest, message["seconds"])
            outcome.memory = max(outcome.memory, message["memory"])
            if message["failure"]:
                outcome.failures.append(Failure(message["end"], message["failure"]))
        else:
            self._finished = True

    def kill(self) -> None:
        """End the process."""
        os.kill(self._pid, signal.SIGKILL)

    def end(self, outcome: Outcome) -> Optional[_Worker]:
        """After the process ended: a process that continues where it died, if it did not finish."""
        self.file.close()
        _, status = os.waitpid(self._pid, 0)
        if self._finished:
            return None
        if self.fault is None:
            self.fault = (
                f"died of {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "ended"
            )
        number = -1 if self._current is None else self._current
        outcome.failures.append(Failure(number, self.fault))
        outcome.done += 1
        rest = [n for n in self.numbers if n > number]
        return _Worker(self.target, rest, self.seed) if rest and number >= 0 else None


def _work(target: Target, numbers: Sequence[int], seed: int, sender: int) -> None:
    def say(**message: Any) -> None:
        os.write(sender, json.dumps(message).encode() + b"\n")

    def too_long(*_: object) -> None:
        raise Hang

    # Twice the limit: the peak is measured, and this only protects the machine.
    for kind in (resource.RLIMIT_DATA,):
        resource.setrlimit(kind, (2 * MEMORY, 2 * MEMORY))
    signal.signal(signal.SIGPROF, too_long)
    faulthandler.disable()  # pytest's handler: the parent reports how this process dies
    target.prepare()
    for number in numbers:
        say(start=number)
        failure, refused = "", False
        started = time.process_time()
        _clock.begin()
        try:
            target.run(generator(target, seed, number))
        except KvintroError:
            refused = True
        except Hang:
            failure = f"no end after {SECONDS * timing.SLOWEST} s:\n{traceback.format_exc()[-2000:]}"
        except BaseException:
            failure = traceback.format_exc()[-3000:]
        _clock.stop()
        seconds = time.process_time() - started
        if _clock.longest > SECONDS and not failure:
            limit = timing.allowed(SECONDS)
            if _clock.longest > limit:
                failure = f"{_clock.longest:.1f} s for a question, more than {limit:.1f} s"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if memory > MEMORY:
            failure = failure or f"{memory >> 20} MB of memory"
        say(
            end=number,
            refused=refused,
            seconds=seconds,
            memory=memory,
            failure=failure,
        )
        if memory > MEMORY:
            sys.exit(1)  # the next case would be blamed for it
    say(finished=True)
