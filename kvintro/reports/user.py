# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of one process, or one line per process."""

from __future__ import annotations

from typing import Mapping, Optional, Sequence, TypedDict

from kvintro.kernels import Kernel
from kvintro.model import Asked, Report, Table
from kvintro.reports.show import Selection, show


class _Always(TypedDict):
    totals: Mapping[str, object]
    pid: Optional[int]


class UserExtra(_Always, total=False):
    """Further values of the report.

    :ivar table: key of the only table to show.
    :ivar maps: in text form, print only the lines of /proc/PID/maps.
    """

    table: str
    maps: bool


UserReport = Report[Sequence[Table], UserExtra]


def user(kernel: Kernel, pid: Optional[int], selection: Selection, *, maps: bool = False) -> UserReport:
    """Return the contents of the user half.

    :param pid: number of a process; None for all processes.
    :param maps: in text form, print only the lines of /proc/PID/maps.
    :raises UsageError: there is no such process, or it has no memory.
    """
    shown = show(kernel, "user", Asked(within=selection.within, pid=pid), selection)
    extra: UserExtra = {"totals": shown.extra["totals"], "pid": pid}
    if "table" in shown.extra:
        extra = {"totals": extra["totals"], "table": shown.extra["table"], "pid": pid}
    if maps:
        extra["maps"] = True
    reason = shown.extra["region"].reason
    return Report(
        command="user",
        kernel=shown.kernel,
        tables=shown.tables,
        notes=(*shown.notes, reason) if reason else shown.notes,
        partial=shown.partial,
        negative=shown.negative,
        extra=extra,
    )
