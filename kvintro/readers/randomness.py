# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rows about what KASLR randomised and from how many places, for several regions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Optional, Tuple

from kvintro.model import Address, Displacement, Randomised, Size
from kvintro.readers.command_line import command_line_words
from kvintro.readers.kasan import has_kasan

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

#: Note about a randomised base that KASLR cannot have chosen.
NO_PLACE = "this is not one of the places that the kernel chooses from"


def bits(slots: int) -> float:
    """Bits of entropy of a random choice from a number of places, to two decimals."""
    return round(math.log2(slots), 2) if slots > 0 else 0.0


def drawn(
    key: str,
    what: str,
    *,
    default: Optional[int],
    actual: int,
    granularity: int,
    slots: int,
    provenance: str,
    computed: str,
    bound: str = "",
    note: str = "",
    place: Optional[int] = None,
) -> Randomised:
    """Return the row of a base that KASLR chose.

    :param place: which of the slots it is, from 0.
    """
    if place is not None and (note or place < 0 or (place >= slots and bound != "at least")):
        place = None
    return Randomised(
        key=key,
        what=what,
        state="on",
        default=None if default is None else Address(default),
        actual=Address(actual),
        displacement=None if default is None else Displacement(actual - default),
        granularity=Size(granularity),
        slots=slots,
        bound=bound,
        bits=bits(slots),
        provenance=provenance,
        computed=computed,
        note=note,
        place=place,
    )


def not_drawn(
    key: str,
    what: str,
    reason: str,
    *,
    default: Optional[int] = None,
    actual: Optional[int] = None,
    provenance: str = "",
    slots: int = 1,
    computed: str = "",
) -> Randomised:
    """Return the row of a base that could be randomised but was not.

    :param slots: 0 if it should have been randomised but no place was free.
    """
    known = default is not None and actual is not None
    return Randomised(
        key=key,
        what=what,
        state="off",
        default=None if default is None else Address(default),
        actual=None if actual is None else Address(actual),
        displacement=Displacement((actual or 0) - (default or 0)) if known else None,
        granularity=None,
        slots=slots,
        bound="",
        bits=0.0,
        provenance=provenance,
        computed=computed,
        note=reason,
    )


def not_known(
    key: str, what: str, reason: str, *, default: Optional[int] = None, actual: Optional[int] = None
) -> Randomised:
    """Return the row of a base for which the number of places, or even the base itself, is unknown."""
    known = default is not None and actual is not None
    return Randomised(
        key=key,
        what=what,
        state="unknown",
        default=None if default is None else Address(default),
        actual=None if actual is None else Address(actual),
        displacement=Displacement((actual or 0) - (default or 0)) if known else None,
        granularity=None,
        slots=None,
        bound="",
        bits=None,
        provenance="",
        computed="",
        note=reason,
    )


def kaslr_enabled(kernel: Kernel) -> Tuple[bool, str]:
    """``kaslr_enabled()``, and the source of that value.

    :raises Unavailable: the source does not contain it.
    """
    found = kernel.facts.kaslr
    return found.value, found.provenance


def why_off(kernel: Kernel, otherwise: str = "switched off when it booted") -> str:
    """Why a kernel with KASLR did not use it.

    :param otherwise: the reason if the command line does not say so.
    """
    words = command_line_words(kernel) or []
    return "nokaslr on the command line" if "nokaslr" in words else otherwise


def bases_are_fixed(kernel: Kernel) -> bool:
    """Whether KASAN keeps the memory bases fixed (arch/x86/include/asm/setup.h:kaslr_memory_enabled)."""
    return kernel.source.symbols != "none" and has_kasan(kernel)
