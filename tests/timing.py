# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits of processor time, relative to reference work that is timed in the same run.

Limits are for a machine on which :func:`reference` takes :data:`REFERENCE` seconds. Other processes take
no processor time of a test, but they slow down caches and hyper-threads; then the reference is slow, too.
"""

from __future__ import annotations

import time
from typing import Dict

#: Seconds of processor time that :func:`reference` takes on the machine of the figures in docs/untrusted.md.
REFERENCE = 0.14
#: A slower machine gets more time, in proportion to the reference, up to this factor.
SLOWEST = 6


def reference() -> float:
    """Seconds of processor time for some work like kvintro's own: numbers, strings, dicts and arrays."""
    import numpy

    started = time.process_time()
    known: Dict[int, str] = {}
    for number in range(150_000):
        known[number & 0xFFF] = f"{number:016x}"
    array = numpy.arange(1 << 20, dtype=numpy.uint64)
    for shift in range(6):
        numpy.sort((array * numpy.uint64(0x9E3779B97F4A7C15)) >> numpy.uint64(shift), kind="stable")
    return time.process_time() - started


def allowed(seconds: float) -> float:
    """Seconds of processor time that are allowed on this machine at its current speed."""
    return seconds * min(max(reference() / REFERENCE, 1), SLOWEST)
