# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times of the kernel's boot and dump, and whether it had panicked."""

from __future__ import annotations

import re
from typing import List

import drgn

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Fact
from kvintro.readers.bounds import bounded

_LOG = "the kernel's log"
# The most specific pattern is first. A panic prints its cause first, then its reason, which is repeated at
# the end.
_TELLING = (
    re.compile(rb"(?<!end )Kernel panic - not syncing: .*"),
    re.compile(rb"BUG: .*|[Kk]ernel BUG at .*|Unable to handle kernel .*"),
    re.compile(rb"Oops: .*"),
    re.compile(rb"sysrq: .*[Cc]rash.*"),
)
_LONGEST = 500
_TROUBLE = (LookupError, AttributeError, TypeError, ValueError, drgn.FaultError, drgn.ObjectAbsentError)


def now(kernel: Kernel) -> Fact[int]:
    """Seconds since 1970 by the kernel's own clock (kernel/time/timekeeping.c:ktime_get_real_seconds).

    :raises Unavailable: the source does not contain it.
    """
    return _clock(kernel, "ktime_get_real_seconds")


def uptime(kernel: Kernel) -> Fact[int]:
    """Seconds since boot, including time in suspend (ktime_get_boottime_seconds).

    :raises Unavailable: the source does not contain it.
    """
    return _clock(kernel, "ktime_get_boottime_seconds")


def _clock(kernel: Kernel, name: str) -> Fact[int]:
    if kernel.source.types == "none":
        raise Unavailable("the kernel's clock cannot be read without types")
    try:
        from drgn.helpers.linux import timekeeping

        seconds = int(getattr(timekeeping, name)(kernel.prog).value_())
    except (ImportError, *_TROUBLE) as error:
        raise Unavailable(f"the kernel's clock cannot be read: {kernel.why(error)}") from None
    if seconds <= 0:
        raise Unavailable("the kernel's clock was not set yet, or its memory reads as zeros")
    return Fact(seconds, "timekeeper")


def panicked(kernel: Kernel) -> Fact[bool]:
    """Whether a CPU had started to panic or crash (kernel/panic.c:panic_cpu is -1 until then).

    :raises Unavailable: the source does not contain it.
    """
    fact = kernel.value("panic_cpu", 4, signed=True)
    return Fact(fact.value != -1, fact.provenance)


def panic_message(kernel: Kernel) -> Fact[str]:
    """Return the kernel's message about its panic.

    :raises Unavailable: the log cannot be read, or has no such message.
    """
    if kernel.source.types == "none":
        raise Unavailable("the kernel's log cannot be read without types")
    try:
        from drgn.helpers.linux.printk import get_dmesg

        with bounded(4):
            log: bytes = get_dmesg(kernel.prog)
    except _TROUBLE as error:
        raise Unavailable(f"the kernel's log cannot be read: {error}") from None
    for pattern in _TELLING:
        lines: List[bytes] = pattern.findall(log)
        if lines:
            return Fact(lines[-1][:_LONGEST].decode("utf-8", "replace"), _LOG)
    raise Unavailable("the kernel's log does not say why")
