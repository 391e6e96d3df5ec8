# SPDX-License-Identifier: LGPL-2.1-or-later
"""What KASLR moved, and from how many places it chose: what several regions need to tell that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Tuple

from kvintro.arch import x86_64_kaslr
from kvintro.errors import Unavailable
from kvintro.model import Address, Displacement, Placement, Size
from kvintro.readers.boot_params import boot_param, command_line_words
from kvintro.types import KASAN

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_KASLR_FLAG = 1 << 1  # boot_params.hdr.loadflags
#: The note of a base that was drawn and cannot have been.
NO_PLACE = "this is none of the places that the kernel chooses from"


@dataclass(frozen=True)
class Randomised:
    """A base that is drawn at random.

    :ivar state: ``on``, ``off`` or ``unknown``.
    :ivar default: where it is without randomisation; None where there is no such place.
    :ivar granularity: places are so far apart.
    :ivar slots: how many there were to choose from; with :ivar:`bound` no exact number: ``at least``, ``at
        most``.
    :ivar bits: of entropy, log2 of the slots.
    :ivar provenance: where the actual place was read.
    :ivar computed: how the number of slots follows.
    """

    key: str
    what: str
    state: str
    default: Optional[Address]
    actual: Optional[Address]
    displacement: Optional[Displacement]
    granularity: Optional[Size]
    slots: Optional[int]
    bound: str
    bits: Optional[float]
    provenance: str
    computed: str
    note: str


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
) -> Randomised:
    """A base that was drawn."""
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
        bits=x86_64_kaslr.bits(slots),
        provenance=provenance,
        computed=computed,
        note=note,
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
    """A base that could be randomised and was not.

    :param slots: 0 if it was to be drawn and there was no place to draw.
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
    """A base of which the source does not tell from how many places it was drawn, or not even where it is."""
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
    """``kaslr_enabled()``, and where that was read.

    :raises Unavailable: the source does not tell.
    """
    return bool(boot_param(kernel, "loadflags") & _KASLR_FLAG), "boot_params.hdr.loadflags"


def why_off(kernel: Kernel) -> str:
    """Why a kernel that has KASLR did not use it."""
    words = command_line_words(kernel) or []
    return "nokaslr on the command line" if "nokaslr" in words else "switched off when it booted"


def bases_are_fixed(kernel: Kernel) -> bool:
    """Whether KASAN keeps the memory bases (arch/x86/include/asm/setup.h:kaslr_memory_enabled)."""
    return kernel.source.symbols != "none" and kernel.has_symbol(KASAN, code=True)


def region_draw(kernel: Kernel, key: str, what: str) -> Randomised:
    """How the base of the direct map, of vmalloc or of vmemmap was drawn."""
    keys = ("direct_map", "vmalloc", "vmemmap")
    geometry = kernel.geometry
    default = {
        "direct_map": geometry.page_offset_base,
        "vmalloc": geometry.vmalloc_base,
        "vmemmap": geometry.vmemmap_base,
    }[key]
    place = kernel.locate(key)
    if not isinstance(place, Placement):
        return not_known(key, what, place.reason)
    actual, provenance = place.range.start, place.provenance.split(",")[0]
    if bases_are_fixed(kernel):
        return not_drawn(
            key,
            what,
            "KASAN needs these bases where they are",
            default=default,
            actual=actual,
            provenance=provenance,
        )
    try:
        enabled, _ = kaslr_enabled(kernel)
    except Unavailable as error:
        if actual == default:
            return not_known(key, what, error.what, default=default, actual=actual)
        enabled = True
    if not enabled:
        return not_drawn(key, what, why_off(kernel), default=default, actual=actual, provenance=provenance)
    try:
        last = kernel.first_value("direct_map_physmem_end", "physmem_end")
        sizes = x86_64_kaslr.region_sizes(geometry, last.value + 1, kernel.page_struct_size.value)
        bases = []
        for other in keys:
            found = kernel.locate(other)
            if not isinstance(found, Placement):
                raise Unavailable(found.reason)
            bases.append(found.range.start)
    except Unavailable as error:
        reason = f"how much was reserved for the direct map is not known: {error.what}"
        return not_known(key, what, reason, default=default, actual=actual)
    index = keys.index(key)
    draw = x86_64_kaslr.region_draws(geometry, sizes, bases)[index]
    given = f", given where {' and '.join(keys[:index])} ended up" if index else ""
    return drawn(
        key,
        what,
        default=default,
        actual=actual,
        granularity=x86_64_kaslr.REGION_ALIGN,
        slots=draw.slots,
        provenance=provenance,
        computed=f"1/{len(keys) - index} of the free space{given} ({last.provenance})",
        note="" if draw.possible else NO_PLACE,
    )
