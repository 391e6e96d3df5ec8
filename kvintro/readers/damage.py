# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notes of a report about damaged or missing data of the kernel."""

from __future__ import annotations

from typing import Dict, List, Tuple


class Damage:
    """Collects what could not be followed or read. A report with such notes is incomplete.

    :ivar notes: one line per kind of problem, with a count.
    """

    _MOST = 20

    def __init__(self) -> None:
        self._counts: Dict[str, Tuple[int, str]] = {}

    def add(self, what: str, detail: object = "") -> None:
        """Add a problem. Equal ``what`` are counted; the first detail is kept."""
        count, first = self._counts.get(what, (0, " ".join(str(detail).split())[:200]))
        self._counts[what] = (count + 1, first)

    def merge(self, others: Damage) -> None:
        """Add the problems of another object."""
        for what, (more, detail) in others._counts.items():
            count, first = self._counts.get(what, (0, detail))
            self._counts[what] = (count + more, first)

    def __bool__(self) -> bool:
        return bool(self._counts)

    @property
    def notes(self) -> List[str]:
        """One line per kind of problem."""
        out = []
        for what, (count, detail) in list(self._counts.items())[: self._MOST]:
            times = f" ({count} times)" if count > 1 else ""
            out.append(f"{what}{times}: {detail}" if detail else f"{what}{times}")
        if len(self._counts) > self._MOST:
            out.append(f"and {len(self._counts) - self._MOST} more problems of this kind")
        return out
