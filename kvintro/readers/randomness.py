# SPDX-License-Identifier: LGPL-2.1-or-later
"""What KASLR moved, and from how many places it chose: what several regions need to tell that."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Tuple

from kvintro.arch import x86_64_kaslr
from kvintro.arch.x86_64 import DEFAULT_TEXT, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.model import Address, Displacement, Placement, Size
from kvintro.readers.structures import text_at
from kvintro.types import KASAN

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_KASLR_FLAG = 1 << 1  # boot_params.hdr.loadflags
_RAM = 1  # E820_TYPE_RAM
_MAX_E820 = 128
_DEFAULT_LOAD = DEFAULT_TEXT - START_KERNEL_MAP
_DEFAULT_ALIGN = 2 << 20


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
) -> Randomised:
    """A base that could be randomised and was not."""
    known = default is not None and actual is not None
    return Randomised(
        key=key,
        what=what,
        state="off",
        default=None if default is None else Address(default),
        actual=None if actual is None else Address(actual),
        displacement=Displacement((actual or 0) - (default or 0)) if known else None,
        granularity=None,
        slots=1,
        bound="",
        bits=0.0,
        provenance=provenance,
        computed="",
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


# Documentation/arch/x86/boot.rst and zero-page.rst: offset and size of fields on which boot loaders and
# kernels agreed for good.
_ZERO_PAGE = {
    "ext_ramdisk_image": (0xC0, 4),
    "ext_ramdisk_size": (0xC4, 4),
    "ext_cmd_line_ptr": (0xC8, 4),
    "e820_entries": (0x1E8, 1),
    "loadflags": (0x211, 1),
    "ramdisk_image": (0x218, 4),
    "ramdisk_size": (0x21C, 4),
    "cmd_line_ptr": (0x228, 4),
    "kernel_alignment": (0x230, 4),
    "cmdline_size": (0x238, 4),
    "pref_address": (0x258, 8),
    "init_size": (0x260, 4),
}
_E820_TABLE, _E820_ENTRY = 0x2D0, struct.Struct("<QQI")


def boot_param(kernel: Kernel, name: str) -> int:
    """A field of ``boot_params``: what the boot loader and the unpacker left. No types are needed.

    :raises Unavailable: it is not in the source.
    """
    offset, size = _ZERO_PAGE[name]
    return int.from_bytes(kernel.read(kernel.symbol("boot_params") + offset, size), "little")


def kaslr_enabled(kernel: Kernel) -> Tuple[bool, str]:
    """``kaslr_enabled()``, and where that was read.

    :raises Unavailable: the source does not tell.
    """
    return bool(boot_param(kernel, "loadflags") & _KASLR_FLAG), "boot_params.hdr.loadflags"


def why_off(kernel: Kernel) -> str:
    """Why a kernel that has KASLR did not use it."""
    try:
        words = text_at(kernel, kernel.value("saved_command_line").value).split()
    except Unavailable:
        words = []
    return "nokaslr on the command line" if "nokaslr" in words else "switched off when it booted"


def image_size(kernel: Kernel) -> Tuple[int, str]:
    """How big the unpacker took the image to be, at most: what it unpacked, or all that the image takes."""
    total = kernel.symbol("_end") - kernel.text.value
    unpacked = x86_64_kaslr.unpacked_at_most(boot_param(kernel, "init_size"))
    return (unpacked, "boot_params.hdr.init_size") if unpacked > total else (total, "_text to _end")


def alignment(kernel: Kernel) -> Tuple[int, int]:
    """(CONFIG_PHYSICAL_ALIGN, LOAD_PHYSICAL_ADDR), which the boot header has."""
    align, load = boot_param(kernel, "kernel_alignment"), boot_param(kernel, "pref_address")
    if not (align and align & align - 1 == 0 and _DEFAULT_ALIGN <= align <= 1 << 24):
        align = _DEFAULT_ALIGN
    if not 0 < load < 1 << 30 or load % align:
        load = _DEFAULT_LOAD
    return align, load


def boot_ram(kernel: Kernel) -> List[Tuple[int, int]]:
    """(start, end) of RAM as the unpacker saw it, ends exclusive."""
    count = min(boot_param(kernel, "e820_entries"), _MAX_E820)
    data = kernel.read(kernel.symbol("boot_params") + _E820_TABLE, count * _E820_ENTRY.size)
    return [(start, start + size) for start, size, kind in _E820_ENTRY.iter_unpack(data) if kind == _RAM]


def boot_initrd(kernel: Kernel) -> List[Tuple[int, int]]:
    """(start, end) of the initrd as the boot loader placed it; empty if there was none."""
    start, size = _wide(kernel, "ramdisk_image"), _wide(kernel, "ramdisk_size")
    return [(start, start + size)] if start and size else []


def _wide(kernel: Kernel, name: str) -> int:
    """A field of ``boot_params`` in two halves."""
    return boot_param(kernel, name) | boot_param(kernel, f"ext_{name}") << 32


def boot_taken(kernel: Kernel) -> List[Tuple[int, int]]:
    """(start, end) of what the unpacker had to spare, as far as that is still known: initrd, command line."""
    taken = boot_initrd(kernel)
    line = _wide(kernel, "cmd_line_ptr")
    if line:
        taken.append((line, line + boot_param(kernel, "cmdline_size")))
    return taken


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
    given = f", given where {' and '.join(keys[:index])} came to lie" if index else ""
    return drawn(
        key,
        what,
        default=default,
        actual=actual,
        granularity=x86_64_kaslr.REGION_ALIGN,
        slots=draw.slots,
        provenance=provenance,
        computed=f"1/{len(keys) - index} of the free space{given} ({last.provenance})",
        note="" if draw.possible else "this is none of the places that the kernel chooses from",
    )
