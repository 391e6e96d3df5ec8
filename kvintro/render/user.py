# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of a process as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from kvintro.render.show import table_lines, totals_lines

if TYPE_CHECKING:
    from kvintro.regions.user import VmaRow
    from kvintro.reports.user import UserReport


def user_lines(report: UserReport, color: bool, width: int) -> List[str]:
    """Totals and tables, or the lines of /proc/PID/maps."""
    if report.extra.get("maps"):
        return [maps_line(row) for table in report.tables for row in table.rows]
    out = [] if report.extra.get("table") else [*totals_lines(report.extra["totals"], width), ""]
    return out + [line for table in report.tables for line in table_lines(table, color, width)]


def maps_line(row: VmaRow) -> str:
    """A line of /proc/PID/maps (fs/proc/task_mmu.c:show_map_vma), whose ends are exclusive."""
    head = f"{row.start:08x}-{row.end + 1:08x} {row.permissions} {row.offset:08x} {row.device} {row.inode} "
    # The name starts at a fixed column. Without a name the line ends after the number.
    return f"{head:73}{row.name}" if row.name else head
