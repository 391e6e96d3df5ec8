# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interface of the ``ptdump_text`` module of an architecture, which formats lines of the kernel's ptdump.

The ``ptdump`` module decides on lines and headings, see :class:`kvintro.queries.ptdump.Dump`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Mapping, Optional, Protocol, Tuple

#: Text in place of the flags if a table was not read, by the state of the line.
NOT_READ: Mapping[str, str] = {"not-in-dump": "(table not in dump)", "over-limit": "(too many tables)"}

_UNITS = "BKMGTPE"


class PtdumpText(Protocol):
    """The ``TEXT`` of an architecture's module."""

    @property
    def most_lines(self) -> Mapping[str, int]:
        """Maximum number of lines that the kernel prints below a heading, for headings with a limit."""

    def line(
        self,
        start: int,
        size: int,
        level: str,
        state: str,
        flags: Tuple[str, ...],
        physical: Optional[int] = None,
    ) -> str:
        """One line, with its newline; empty if the kernel prints none.

        :param size: bytes; the line ends at ``start + size`` modulo 2^64, exclusive.
        :param level: the kernel's name of the level (``pte``), as in JSON.
        :param state: ``present``, ``not-present``, or one of :data:`NOT_READ`.
        :param flags: names of the flags that are set, as in JSON.
        :param physical: physical address of the first entry, for kernels that print it.
        """


@lru_cache(maxsize=1 << 12)
def size_text(size: int) -> str:
    """A size in the largest unit that divides it, in ten columns."""
    unit = 0
    while not size & 1023 and unit < len(_UNITS) - 1:
        size >>= 10
        unit += 1
    return f"{size:9d}{_UNITS[unit]}"
