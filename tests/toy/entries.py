# SPDX-License-Identifier: LGPL-2.1-or-later
"""The toy architecture's entries, decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

from kvintro.arch.entry import Entry, UserRange
from tests.toy.form import ToyForm


@dataclass(frozen=True)
class ToyEntries:
    """See :class:`kvintro.arch.entry.EntryFormat`."""

    form: ToyForm
    notes: Sequence[str] = ()

    def decode(self, value: int, level: int, *, half: Optional[str] = None) -> Entry:
        """Decode tables, pages, and other entries."""
        half, form = half or "kernel", self.form
        names = {2: "READ_ONLY", 3: "FOR_USER"}
        bits = {bit: name for bit, name in names.items() if value >> bit & 1}
        if form.is_leaf(value, level):
            size = 1 << form.shift(level)
            return Entry(value, level, half, "page", form.page_address(value, level), size, bits=bits)
        if level > 1 and form.is_table(value, level):
            return Entry(value, level, half, "table", form.table_address(value))
        return Entry(value, level, half, "not-present" if value else "empty")

    def of_range(self, key: int, level: int) -> UserRange:
        """There is no swap."""
        return UserRange(False, "swap")
