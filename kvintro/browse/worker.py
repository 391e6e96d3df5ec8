# SPDX-License-Identifier: LGPL-2.1-or-later
"""The single thread that queries the kernel. Questions wait in a queue, and can be cancelled."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Deque, Optional


class Cancelled(BaseException):
    """Raised in the thread to end a question. A BaseException, so that ``except Exception`` misses it."""


@dataclass(frozen=True)
class Answer:
    """Result of a question.

    :ivar lane: lane of the question.
    :ivar value: value that its function returned; None if it failed.
    :ivar error: exception that it raised.
    """

    lane: str
    value: Any = None
    error: Optional[Exception] = None


@dataclass(eq=False)
class Question:
    """A question for the thread.

    :ivar lane: a question replaces others of the same lane.
    :ivar text: description to display.
    :ivar ask: runs in the thread.
    :ivar done: called in the thread with the answer, unless the question was cancelled.
    :ivar patient: whether it yields to other questions and starts again after them.
    """

    lane: str
    text: str
    ask: Callable[[], Any]
    done: Callable[[Answer], None]
    patient: bool = False
    cancelled: bool = False
    put_back: bool = False
    over: bool = False


class Worker:
    """Runs questions one by one, in the order in which they were added."""

    def __init__(self) -> None:
        self._waiting: Deque[Question] = deque()
        self._running: Optional[Question] = None
        # The end of a question takes the lock itself: an exception that arrives within Condition.__enter__(),
        # which is written in Python, would leave it locked.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="kvintro", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether all questions have been answered."""
        return self._running is None and not self._waiting

    @property
    def busy(self) -> str:
        """Description of the current work; empty if there is none."""
        running = self._running
        return "" if running is None else f"{running.text} {self._said}".rstrip()

    def say(self, text: str) -> None:
        """Add to the description of the current work. Called in the thread."""
        self._said = text

    def ask(self, question: Question) -> None:
        """Add a question, and cancel others of its lane."""
        with self._changed:
            self._drop(question.lane)
            running = self._running
            if running is not None and running.patient and _can_be_interrupted(running):
                running.put_back = True
                self._interrupt()
                self._waiting.append(question)
                self._waiting.append(running)
            else:
                self._waiting.append(question)
            self._changed.notify()

    def cancel(self, lane: str = "") -> None:
        """Cancel the questions of a lane; by default all questions."""
        with self._changed:
            self._drop(lane)

    def stop(self) -> None:
        """End the thread and cancel its current question."""
        with self._changed:
            self._stopped = True
            self._drop("")
            self._changed.notify()
        self._thread.join(2.0)

    def _drop(self, lane: str) -> None:
        self._waiting = deque(q for q in self._waiting if lane and q.lane != lane)
        running = self._running
        if running is not None and (not lane or running.lane == lane):
            if _can_be_interrupted(running):
                self._interrupt()
            running.cancelled = True

    def _interrupt(self) -> None:
        """Raise Cancelled in the thread at its next instruction."""
        identity = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(Cancelled))

    def _receive_interrupt(self) -> None:
        """Let an interrupt arrive here if it has not arrived yet. Called in the thread.

        It cannot be withdrawn: CPython would still consider an exception pending in some thread. Python 3.11
        then never leaves the next function that is called while a profile function is set.
        """
        try:
            self._interrupt()  # replaces one that has not arrived
            while True:
                pass
        except Cancelled:
            pass

    def _run(self) -> None:
        while True:
            try:
                if not self._one():
                    return
            except Cancelled:
                self._running = None  # the exception arrived after the question had ended

    def _one(self) -> bool:
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return False
            # In this order, because idle reads both without the lock.
            question = self._running = self._waiting[0]
            self._waiting.popleft()
            question.put_back = question.over = False
            self._said = ""
        answer: Optional[Answer] = None
        try:
            answer = Answer(question.lane, question.ask())
        except Cancelled:
            pass
        except Exception as error:
            answer = Answer(question.lane, None, error)
        with self._lock:
            question.over = True
            if question.cancelled or question.put_back:
                self._receive_interrupt()
            if question.put_back and answer is not None and question in self._waiting:
                self._waiting.remove(question)  # it ended before it could yield
        if answer is not None and not question.cancelled:
            question.done(answer)
        self._running = None
        return True


def _can_be_interrupted(question: Question) -> bool:
    """Whether a running question can still be interrupted."""
    return not (question.cancelled or question.put_back or question.over)
