# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: the number of places that KASLR chose from, for each region that all architectures have.

The arithmetic is in :mod:`kvintro.arch.x86_64.slots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import slots as kaslr_slots
from kvintro.arch.x86_64.boot_params import alignment, boot_ram, booted_by_efi, image_sizes, unpacking
from kvintro.arch.x86_64.form import MODULES_END, PAGE_SIZE, PMD_SHIFT, START_KERNEL_MAP, X86Form
from kvintro.arch.x86_64.slots import MODULE_SLOTS, module_slots
from kvintro.errors import Unavailable
from kvintro.model import ALL, Placement, Randomised
from kvintro.readers.kasan import has_kasan
from kvintro.readers.randomness import (
    NO_PLACE,
    bases_are_fixed,
    drawn,
    kaslr_enabled,
    not_drawn,
    not_known,
    why_off,
)
from kvintro.readers.structures import number, pointer_at, struct_at
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

_KASAN_SHADOW_SHIFT = 3  # KASAN_SHADOW_SCALE_SHIFT


def region_draw(kernel: Kernel, key: str, what: str) -> Randomised:
    """How the base of the direct map, vmalloc or vmemmap was chosen."""
    keys = ("direct_map", "vmalloc", "vmemmap")
    form = kernel.form
    assert isinstance(form, X86Form)
    default = {
        "direct_map": form.page_offset_base,
        "vmalloc": form.vmalloc_base,
        "vmemmap": form.vmemmap_base,
    }[key]
    place = kernel.locate(key)
    if not isinstance(place, Placement):
        return not_known(key, what, place.reason)
    actual, provenance = place.range.start, place.provenance.split(",")[0]
    if bases_are_fixed(kernel):
        return not_drawn(
            key,
            what,
            "KASAN needs these bases at their defaults",
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
        sizes = kaslr_slots.region_sizes(form, last.value + 1, kernel.page_struct_size.value)
        bases = []
        for other in keys:
            found = kernel.place(other)
            bases.append(found.range.start)
    except Unavailable as error:
        reason = f"the size reserved for the direct map is not known: {error.what}"
        return not_known(key, what, reason, default=default, actual=actual)
    index = keys.index(key)
    draw = kaslr_slots.region_draws(form, sizes, bases)[index]
    given = f", given where {' and '.join(keys[:index])} ended up" if index else ""
    return drawn(
        key,
        what,
        default=default,
        actual=actual,
        granularity=kaslr_slots.REGION_ALIGN,
        slots=draw.slots,
        provenance=provenance,
        computed=f"1/{len(keys) - index} of the free space{given} ({last.provenance})",
        note="" if draw.possible else NO_PLACE,
        place=(draw.base - draw.earliest) // kaslr_slots.REGION_ALIGN,
    )


def _virtual_draw(kernel: Kernel) -> Randomised:
    """arch/x86/boot/compressed/kaslr.c:find_random_virt_addr; x86-stub.c:efi_decompress_kernel."""
    key, what = "image_virtual", "kernel image, virtual"
    actual = kernel.text.value
    default = actual - kernel.image_slide.value
    provenance = kernel.text.provenance
    try:
        enabled, _ = kaslr_enabled(kernel)
        align, load = alignment(kernel)
        least, most, source = image_sizes(kernel)
    except Unavailable as error:
        return not_known(key, what, error.what, default=default, actual=actual)
    if not enabled:
        return not_drawn(key, what, why_off(kernel), default=default, actual=actual, provenance=provenance)
    window = kernel.number("NUMBER(KERNEL_IMAGE_SIZE)").value
    size = least if most is None else most
    slots = kaslr_slots.image_slots(window, load, size, align)
    bound = "at most" if most is None else "at least"
    if slots == kaslr_slots.image_slots(window, load, least, align) and most is not None:
        bound = ""
    return drawn(
        key,
        what,
        default=default,
        actual=actual,
        granularity=align,
        slots=slots,
        bound=bound,
        provenance=provenance,
        computed=f"the window from {load >> 20} MB up, minus {-(-size >> 20)} MB of image ({source})",
        place=(actual - default) // align,
    )


def _physical_draw(kernel: Kernel) -> Randomised:
    """arch/x86/boot/compressed/kaslr.c:find_random_phys_addr."""
    key, what = "image_physical", "kernel image, physical"
    actual = kernel.text.value - kernel.image_offset.value & ALL
    provenance = kernel.image_offset.provenance
    try:
        enabled, _ = kaslr_enabled(kernel)
        align, preferred = alignment(kernel)
        if not enabled:
            reason = why_off(kernel)
            return not_drawn(key, what, reason, default=preferred, actual=actual, provenance=provenance)
        if booted_by_efi(kernel):
            return _firmware_draw(kernel, key, what, actual, provenance)
        least, most, _ = image_sizes(kernel)
        unpacker = unpacking(kernel)
    except Unavailable as error:
        return not_known(key, what, error.what, actual=actual)

    minimum = min(unpacker.load, kaslr_slots.HIGHEST_MINIMUM)
    computed = (
        f"RAM from {minimum >> 20} MB up by boot_params.e820_table, less what the unpacker uses (up to "
        f"{unpacker.taken[0][1] >> 20} MB), initrd and command line"
    )
    if actual == unpacker.load:
        # That place overlaps the packed kernel, so it is never chosen at random.
        return not_drawn(
            key,
            what,
            "no other place was free for it, so it stayed where it was loaded",
            default=unpacker.load,
            actual=actual,
            provenance=provenance,
            slots=0,
            computed=computed,
        )
    fewest, greatest = (
        kaslr_slots.physical_places(unpacker.ram, unpacker.taken, minimum, size, align)
        for size in (least if most is None else most, least)
    )
    slots, other = sum(map(len, fewest)), sum(map(len, greatest))
    if not unpacker.complete:
        slots, bound = other, "at most"
    else:
        bound = "" if slots == other else "at least"
    return drawn(
        key,
        what,
        default=unpacker.load,
        actual=actual,
        granularity=align,
        slots=max(slots, 1),
        bound=bound,
        provenance=provenance,
        computed=computed,
        note="" if any(actual in found for found in greatest) else NO_PLACE,
        place=_index(fewest, actual),
    )


def _index(places: Sequence[range], actual: int) -> Optional[int]:
    before = 0
    for found in places:
        if actual in found:
            return before + found.index(actual)
        before += len(found)
    return None


def _firmware_draw(kernel: Kernel, key: str, what: str, actual: int, provenance: str) -> Randomised:
    """Places in the firmware's memory map: x86-stub.c:efi_decompress_kernel with efi_random_alloc; before
    a1b87d54f4e4 "x86/efistub: Avoid legacy decompressor when doing EFI boot" kaslr.c:process_efi_entries.

    Only the RAM of that map is preserved, in the table that the stub made from it (x86-stub.c:setup_e820).
    """
    align, preferred = alignment(kernel)
    least, _, _ = image_sizes(kernel)
    found = kaslr_slots.physical_places(boot_ram(kernel), [], preferred, least, align)
    return drawn(
        key,
        what,
        # Firmware also chooses the place without KASLR.
        default=None,
        actual=actual,
        granularity=align,
        slots=max(sum(map(len, found)), 1),
        bound="at most",
        provenance=provenance,
        computed="RAM in boot_params.e820_table; the firmware's map, which limited the choice, is not kept",
        note="" if any(actual in places for places in found) else NO_PLACE,
    )


def _modules(kernel: Kernel) -> Sequence[Randomised]:
    """The place of the first piece: a random number of pages after the start, drawn once and rounded up.

    With the cache of executable memory, text is in huge pages, and only data is at the random place.
    """
    default = START_KERNEL_MAP + kernel.number("NUMBER(KERNEL_IMAGE_SIZE)").value
    try:
        enabled, _ = kaslr_enabled(kernel)
    except Unavailable as error:
        return (not_known("modules", "modules", error.what),)
    if not enabled:
        return (not_drawn("modules", "modules", why_off(kernel), default=default, actual=default),)
    found = _first_place(kernel, default)
    if found is None:
        reason = "no module was loaded yet, so no place was chosen, or the source does not contain it"
        return (not_known("modules", "modules", reason),)
    plain = _alignment(kernel)
    huge = _text_alignment(kernel)
    if huge is None:
        reason = "without types it is not known whether text uses huge pages"
        return (
            not_known("modules", "modules, text", reason, default=default),
            _draw("modules_data", "modules, data", default, found, plain),
        )
    if huge <= plain:
        return (_draw("modules", "modules", default, found, plain),)
    return (
        _draw("modules", "modules, text", default, found, huge),
        _draw("modules_data", "modules, data", default, found, plain),
    )


def _first_place(kernel: Kernel, default: int) -> Optional[Tuple[int, str]]:
    """(address, where it was read from): ``module_load_offset``; since 223b5e57d0d5 "mm/execmem, arch:
    convert remaining overrides of module_alloc to execmem" (6.10) the start of the first range of
    ``execmem_info``.
    """
    if kernel.find_symbol("module_load_offset") is not None:
        offset = kernel.value("module_load_offset").value
        return (default + offset, "module_load_offset") if offset else None
    at = _ranges(kernel, default)
    if at is None:
        return None
    return pointer_at(kernel, at), "execmem_info.ranges[EXECMEM_MODULE_TEXT].start"


def _ranges(kernel: Kernel, default: int) -> Optional[int]:
    """Address of ``execmem_info.ranges``; each range begins with its start. None if not found."""
    try:
        # There are two variables of this name; one is a pointer to the other.
        candidates = kernel.prog.symbols("execmem_info")
    except LookupError:
        return None
    for symbol in candidates:
        try:
            if default <= pointer_at(kernel, symbol.address) < MODULES_END:
                return int(symbol.address)
        except Unavailable:
            continue
    return None


def _draw(key: str, what: str, default: int, found: Tuple[int, str], align: int) -> Randomised:
    """The first place in the region with the alignment."""
    start, provenance = found
    rounded = "" if align == PAGE_SIZE else f", rounded up to {size_text(align)}"
    return drawn(
        key,
        what,
        default=default,
        actual=-(-start // align) * align,
        granularity=align,
        slots=module_slots(align),
        provenance=provenance,
        computed=f"1 to {MODULE_SLOTS} pages{rounded}",
        note="" if 0 < start - default <= MODULE_SLOTS * PAGE_SIZE and start % PAGE_SIZE == 0 else NO_PLACE,
        # Rounded up, the last place is less likely than the others.
        place=(start - default) // align - 1 if align == PAGE_SIZE else None,
    )


def _alignment(kernel: Kernel) -> int:
    """MODULE_ALIGN: with KASAN but without shadow of vmalloc, the memory of a whole page of shadow."""
    kasan = has_kasan(kernel) and not kernel.has_symbol("kasan_populate_vmalloc", code=True)
    return PAGE_SIZE << _KASAN_SHADOW_SHIFT if kasan else PAGE_SIZE


def _text_alignment(kernel: Kernel) -> Optional[int]:
    """Alignment of a piece of text: 2 MB if it comes from the cache (mm/execmem.c:
    execmem_cache_populate_alloc), otherwise 1; None if the source does not say.

    2e45474ab14f "execmem: add support for cache of large ROX pages" added the cache. x86 has used it in some
    versions since, and never on processors without PSE (arch/x86/mm/init.c:execmem_arch_setup).
    """
    if not kernel.has_symbol("execmem_fill_trapping_insns", code=True):
        return 1
    try:
        first = _ranges(kernel, START_KERNEL_MAP)
        if first is None:
            return None
        text = struct_at(kernel, "struct execmem_range", first)
        cached = number(text, "flags") & int(kernel.prog.constant("EXECMEM_ROX_CACHE").value_())
        # nohugevmalloc: mm/vmalloc.c:__vmalloc_node_range_noprof.
        huge = kernel.value("vmap_allow_huge", 1).value
    except (LookupError, Unavailable):
        return None
    return 1 << PMD_SHIFT if cached and huge else 1


def _image(kernel: Kernel) -> Sequence[Randomised]:
    """Its place in the window, and its place in physical memory, which is chosen separately."""
    return (_virtual_draw(kernel), _physical_draw(kernel))


def _base(key: str, what: str) -> Callable[[Kernel], Sequence[Randomised]]:
    """A base that arch/x86/mm/kaslr.c randomises."""
    return lambda kernel: (region_draw(kernel, key, what),)


#: What KASLR randomises, by the region's key.
DRAWS: Mapping[str, Callable[[Kernel], Sequence[Randomised]]] = {
    "direct_map": _base("direct_map", "direct map of physical memory"),
    "vmalloc": _base("vmalloc", "vmalloc"),
    "vmemmap": _base("vmemmap", "virtual memory map"),
    "kernel_image": _image,
    "modules": _modules,
}
