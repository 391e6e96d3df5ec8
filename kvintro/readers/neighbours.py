# SPDX-License-Identifier: LGPL-2.1-or-later
"""Merges adjacent ranges that are alike into one row."""

from __future__ import annotations

from typing import Callable, Iterable, List, Protocol, TypeVar


class HasEnds(Protocol):
    """A row for the addresses ``start`` to ``end``, both inclusive."""

    @property
    def start(self) -> int:
        """First address."""

    @property
    def end(self) -> int:
        """Last address."""


R = TypeVar("R", bound=HasEnds)


def add_merged(rows: List[R], row: R, alike: Callable[[R, R], bool], join: Callable[[R, R], R]) -> None:
    """Add a row, or join it with the last one if they are alike and adjacent.

    :param alike: whether two adjacent rows may be joined.
    :param join: makes one row of two, the lower one first.
    """
    if rows and rows[-1].end + 1 == row.start and alike(rows[-1], row):
        rows[-1] = join(rows[-1], row)
    else:
        rows.append(row)


def merged(rows: Iterable[R], alike: Callable[[R, R], bool], join: Callable[[R, R], R]) -> List[R]:
    """Join adjacent rows of a sequence in order of address; see :func:`add_merged`."""
    found: List[R] = []
    for row in rows:
        add_merged(found, row, alike, join)
    return found
