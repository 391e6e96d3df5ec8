# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values that the kernel writes in place of addresses. The numbers are from its headers."""

from __future__ import annotations

from typing import Optional

import pytest

from kvintro.queries.constants import constants
from kvintro.reports.identify import identify


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # ERR_PTR(-ENOMEM): include/uapi/asm-generic/errno-base.h has 12.
        (0xFFFFFFFFFFFFFFF4, "error value: -ENOMEM (Cannot allocate memory)"),
        (0xFFFFFFFFFFFFFFFF, "error value: -EPERM (Operation not permitted)"),
        (0xFFFFFFFFFFFFFE00, "error value: -ERESTARTSYS"),
        (0xFFFFFFFFFFFFF001, "error value: -4095"),
        (0xFFFFFFFFFFFFF000, None),
        (0, None),
        (0xDEAD000000000100, "poison: LIST_POISON1: next of a list entry that was deleted"),
        (0xDEAD000000000122, "poison: LIST_POISON2: prev of a list entry that was deleted"),
        (0xDEAD000000000108, "poison: LIST_POISON1 +0x8: next of a list entry that was deleted"),
        (0xDEAD000000000000, None),
        (0x6B6B6B6B6B6B6B6B, "poison: POISON_FREE: slab memory that was freed"),
        (0x6B6B6B6B6B6B6B8B, "poison: POISON_FREE +0x20: slab memory that was freed"),
        (0xA56B6B6B6B6B6B6B, "poison: POISON_FREE up to POISON_END: the end of slab memory that was freed"),
        (0xAAAAAAAAAAAAAAAA, "poison: PAGE_POISON: a page that was freed"),
        (0x6B6B6B6B6B6B6B6A, None),
        (0xFFFF888000001000, None),
    ],
)
def test_values(value: int, text: Optional[str]) -> None:
    assert [thing.text for thing in constants(value)] == ([] if text is None else [text])


def test_without_a_kernel() -> None:
    report = identify(None, ["fffffffffffffff4", "ffff888000001000"])
    first, second = report.tables[0].rows
    assert [thing.kind for thing in first.identities] == ["error_value"]
    assert second.identities == () and second.note and report.negative
    assert "no kernel was read" in report.notes[0]
