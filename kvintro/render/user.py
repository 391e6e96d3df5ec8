# SPDX-License-Identifier: LGPL-2.1-or-later
"""A process's memory as text."""

from __future__ import annotations

from typing import Any, List

from kvintro.model import Report
from kvintro.render.show import table_lines, totals_lines


def user_lines(report: Report, color: bool, width: int) -> List[str]:
    """Totals and a table; or the lines of /proc/PID/maps."""
    if report.extra.get("maps"):
        return [maps_line(row) for table in report.tables for row in table.rows]
    out = [] if report.extra.get("table") else [*totals_lines(report.extra["totals"]), ""]
    return out + [line for table in report.tables for line in table_lines(table, color)]


def maps_line(row: Any) -> str:
    """A line of /proc/PID/maps (fs/proc/task_mmu.c:show_map_vma), whose ends are exclusive."""
    head = f"{row.start:08x}-{row.end + 1:08x} {row.permissions} {row.offset:08x} {row.device} {row.inode} "
    # The name starts at a fixed column; without one the line ends where the number does.
    return f"{head:73}{row.name}" if row.name else head
