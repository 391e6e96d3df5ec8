# SPDX-License-Identifier: LGPL-2.1-or-later
"""One process's memory, or a line for each process."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from kvintro.kernel import Kernel
from kvintro.model import Report
from kvintro.regions import Asked
from kvintro.reports.show import Selection, show


def user(kernel: Kernel, pid: Optional[int], selection: Selection, *, maps: bool = False) -> Report:
    """The contents of the user half.

    :param pid: a process; None for all of them.
    :param maps: as text nothing but the lines of /proc/PID/maps.
    :raises UsageError: there is no such process, or it has no memory.
    """
    report = show(kernel, "user", Asked(within=selection.within, pid=pid), selection)
    extra = {key: value for key, value in report.extra.items() if key != "region"}
    extra["pid"] = pid
    reason = report.extra["region"].reason
    if reason:
        report = replace(report, notes=(*report.notes, reason))
    if maps:
        extra["maps"] = True
    return replace(report, command="user", extra=extra)
