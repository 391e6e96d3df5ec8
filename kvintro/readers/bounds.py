# SPDX-License-Identifier: LGPL-2.1-or-later
"""Time limits for drgn's helpers, which may follow damaged lists and trees forever."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, Iterator

from kvintro.errors import Unavailable

_WAITING = 10  # seconds of wall-clock time per second of processor time


class _OutOfTime(BaseException):
    """A BaseException, so that the helpers' ``except Exception`` does not catch it."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Limit the time of drgn helpers, which may follow a damaged list or tree forever.

    Helpers are written in Python, so a profile function sees their calls; outside the block it costs nothing.
    The limit is processor time, so that a busy machine gives the same answers. Wall-clock time is limited
    too, to ten times as much. A profiler of the host program continues afterwards, but misses the calls in
    between.

    :raises Unavailable: the time is up.
    """
    deadline = time.thread_time() + seconds
    patience = time.monotonic() + _WAITING * seconds
    before = sys.getprofile()
    calls = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        if not calls & 0xF and (time.thread_time() > deadline or time.monotonic() > patience):
            raise _OutOfTime

    sys.setprofile(watch)
    try:
        yield
    except _OutOfTime:
        raise Unavailable(f"the search did not end within {seconds:.2g} s") from None
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:
            # Before Python 3.12 this is a cProfile.Profile, which must be set by its own method.
            sys.setprofile(None)
            before.enable()


class Budget:
    """Processor time for all calls of drgn's helpers by one command.

    Each call adds a little to the remaining time, up to the time at the start. So a long series of calls is
    never cut short, and a hostile dump costs the total once instead of once per call.

    :param seconds: time for all calls.
    :param each: time that a call adds.
    """

    def __init__(self, seconds: float, each: float) -> None:
        self._left = self._most = seconds
        self._each = each

    @property
    def spent(self) -> bool:
        """Whether no time is left."""
        return self._left <= 0

    def question(self) -> None:
        """Add the time for one more call."""
        self._left = min(max(self._left, 0) + self._each, self._most)

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Apply :func:`bounded` with the remaining time.

        :raises Unavailable: the time is up.
        """
        if self.spent:
            raise Unavailable("the time for searches is used up")
        started = time.thread_time()
        try:
            with bounded(self._left):
                yield
        finally:
            self._left -= time.thread_time() - started
