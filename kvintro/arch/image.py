# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parts of a kernel's image, by its linker script, and what happens to them after boot."""

from __future__ import annotations

from typing import NamedTuple, Tuple

#: What happens to a part after boot: it stays; its memory and its mapping are freed to the allocator; it is
#: freed and stays mapped as it was; it is freed in part; it is freed and unmapped.
KEPT, FREED, FREED_MAPPED, FREED_PARTLY = "kept", "freed", "freed, mapped", "freed in part"
FREED_UNMAPPED = "freed, unmapped"


class Part(NamedTuple):
    """A part of the image.

    :ivar first: the symbol of its start.
    :ivar last: the symbol of its end (exclusive).
    :ivar rights: its rights once the kernel runs; empty if they do not matter.
    :ivar fate: one of :data:`KEPT`, :data:`FREED`, :data:`FREED_MAPPED`, :data:`FREED_PARTLY`,
        :data:`FREED_UNMAPPED`.
    :ivar last_kept: whether its last page is not freed if the part ends within it.
    """

    name: str
    first: str
    last: str
    rights: str
    fate: str = KEPT
    last_kept: bool = False


class InnerPart(NamedTuple):
    """A part of a part.

    :ivar inside: name of the part that contains it.
    """

    name: str
    inside: str
    first: str
    last: str


#: Parts that have the same symbols on every architecture (include/asm-generic/vmlinux.lds.h).
COMMON_INNER: Tuple[InnerPart, ...] = (
    InnerPart("entry text", "text", "__entry_text_start", "__entry_text_end"),
    InnerPart("noinstr text", "text", "__noinstr_text_start", "__noinstr_text_end"),
    InnerPart("ro_after_init", "rodata", "__start_ro_after_init", "__end_ro_after_init"),
    InnerPart("exception table", "rodata", "__start___ex_table", "__stop___ex_table"),
    InnerPart("BTF", "rodata", "__start_BTF", "__stop_BTF"),
)
