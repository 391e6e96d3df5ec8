# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: the number of places that KASLR chose from.

The arithmetic is in :mod:`kvintro.arch.aarch64.slots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Mapping, Sequence

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.arch.aarch64.nameless import word_read_by
from kvintro.arch.aarch64.places import image_end, module_base
from kvintro.arch.aarch64.slots import (
    DIRECT_REACH,
    IMAGE_ALIGN,
    PLT_REACH,
    image_window,
    linear_align,
    linear_slots,
    module_window,
    old_module_window,
    physical_align,
)
from kvintro.arch.facts import ram
from kvintro.errors import Unavailable
from kvintro.model import ALL, Randomised
from kvintro.readers.randomness import NO_PLACE, drawn, not_drawn, not_known, why_off
from kvintro.text import size_text

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

#: The seed for the linear map. Kernels that do not randomise it (7.3) do not have the seed.
_LINEAR_SEED = "memstart_offset_seed"


def _image(kernel: Kernel) -> Sequence[Randomised]:
    """arch/arm64/kernel/pi/kaslr_early.c:kaslr_early_init."""
    return _virtual(kernel), _physical(kernel)


def _virtual(kernel: Kernel) -> Randomised:
    key, what = "image_virtual", "kernel image, virtual"
    facts = arm64_facts(kernel)
    slide, default = facts.image_slide, facts.image_place
    actual = default + slide.value & ALL
    if not facts.kaslr.value:
        reason = _why_off(kernel)
        return not_drawn(key, what, reason, default=default, actual=actual, provenance=slide.provenance)
    try:
        space, start = facts.space, facts.vmalloc.start
    except Unavailable as error:
        return not_known(key, what, error.what, default=default, actual=actual)
    window = image_window(facts.form, start, space.vmalloc_end, halves=space.middle)
    # The place of the image within 2 MB depends on its physical address.
    drawn_at = slide.value & -IMAGE_ALIGN
    return drawn(
        key,
        what,
        default=default,
        actual=actual,
        granularity=IMAGE_ALIGN,
        slots=len(window),
        provenance=slide.provenance,
        computed=(
            "the middle half of the vmalloc area"
            if space.middle
            else f"a quarter of 2^{facts.form.least_bits}"
        ),
        note="" if window.start - IMAGE_ALIGN < drawn_at < window.stop else NO_PLACE,
        place=max(drawn_at - window.start, 0) // IMAGE_ALIGN,
    )


def _physical(kernel: Kernel) -> Randomised:
    key, what = "image_physical", "kernel image, physical"
    facts = arm64_facts(kernel)
    actual = facts.image_place + facts.image_slide.value - facts.image_offset.value & ALL
    provenance = facts.image_offset.provenance
    if not facts.kaslr.value:
        return not_drawn(key, what, _why_off(kernel), actual=actual, provenance=provenance)
    # Everything else that chooses an address aligns it to 2 MB (Documentation/arch/arm64/booting.rst).
    if actual % IMAGE_ALIGN:
        return _by_firmware(kernel, key, what, actual)
    try:
        by_efi = _booted_by_efi(kernel)
    except Unavailable as error:
        return not_known(key, what, error.what, actual=actual)
    if by_efi:
        reason = "a multiple of 2 MB: EFI's random choice, or firmware had no random number"
        return not_known(key, what, reason, actual=actual)
    reason = "the boot loader chose it: only the EFI stub chooses at random"
    return not_drawn(key, what, reason, actual=actual, provenance=provenance)


def _booted_by_efi(kernel: Kernel) -> bool:
    """Whether EFI booted the kernel: ``efi.runtime``, or bit 0 (EFI_BOOT) of ``efi.flags``.

    :raises Unavailable: the variable cannot be found.
    """
    if kernel.code_only and kernel.find_symbol("efi") is None:
        found = word_read_by(kernel, "efi_poweroff_required")
        if found is not None and found[1] >> 32 == 0:
            return bool(found[1] & 1)
    return kernel.value("efi").value != 0


def _by_firmware(kernel: Kernel, key: str, what: str, actual: int) -> Randomised:
    """drivers/firmware/efi/libstub/kaslr.c:efi_kaslr_relocate_kernel; before 6.8 ``arm64-stub.c``."""
    align = physical_align(arm64_facts(kernel).form)
    try:
        sizes = [end - first << kernel.page_shift for first, end in kernel.node_spans()]
    except Unavailable as error:
        return not_known(key, what, error.what, actual=actual)
    return drawn(
        key,
        what,
        default=None,
        actual=actual,
        granularity=align,
        slots=sum(-(-size // align) for size in sizes),
        bound="at most",
        provenance=arm64_facts(kernel).image_offset.provenance,
        computed="RAM; firmware's memory map, which limited the choice, is not kept",
        note="" if actual % align == 0 else NO_PLACE,
    )


def _why_off(kernel: Kernel) -> str:
    return why_off(
        kernel,
        "neither the boot loader nor the processor provided a random number, or KASLR was switched off",
    )


def _linear(kernel: Kernel) -> Sequence[Randomised]:
    """arch/arm64/mm/init.c:arm64_memblock_init."""
    key, what = "direct_map", "RAM in the linear map"
    facts = arm64_facts(kernel)
    span = ram(kernel)
    if span is None:
        return (not_known(key, what, "the start of RAM is not known"),)
    form, align = facts.form, linear_align(facts.form)
    actual = span[0] + facts.linear_offset.value & ALL
    # Without KASLR, memstart_addr is the start of RAM, rounded down, or less on processors with fewer bits.
    base = span[0] & -align
    default = span[0] - base + form.linear_map.start
    provenance = facts.memstart.provenance
    moved = actual - default
    if not facts.kaslr.value:
        reason = _why_off(kernel)
        return (not_drawn(key, what, reason, default=default, actual=actual, provenance=provenance),)
    if not kernel.code_only and kernel.find_symbol(_LINEAR_SEED) is None and moved == 0:
        reason = "this kernel does not randomise it"
        return (not_drawn(key, what, reason, default=default, actual=actual, provenance=provenance),)
    bits = facts.physical_bits
    if bits is None:
        reason = "the size of the processor's physical addresses is not known"
        return (not_known(key, what, reason, default=default, actual=actual),)
    slots = linear_slots(form, bits)
    if slots == 1:
        reason = f"physical addresses of {bits} bits leave no room in the linear map"
        return (not_drawn(key, what, reason, default=default, actual=actual, provenance=provenance),)
    return (
        drawn(
            key,
            what,
            default=default,
            actual=actual,
            granularity=align,
            slots=slots,
            provenance=provenance,
            computed=f"the linear map, less 2^{bits}",
            note="" if moved % align == 0 and moved >= 0 else NO_PLACE,
            place=moved // align,
        ),
    )


def _modules(kernel: Kernel) -> Sequence[Randomised]:
    """arch/arm64/mm/init.c:module_init_limits; before 6.5 ``arch/arm64/kernel/kaslr.c:kaslr_init``."""
    key, what = "modules", "modules"
    facts, page = arm64_facts(kernel), kernel.form.page_size
    base = module_base(kernel)
    name = "" if base is None else base.provenance
    if not facts.kaslr.value:
        at = None if base is None else base.value
        return (not_drawn(key, what, _why_off(kernel), actual=at, provenance=name),)
    if base is None:
        missing = "module_alloc_base" if kernel.code_only else "module_plt_base"
        return (not_known(key, what, kernel.nameless(missing).what),)
    try:
        end = image_end(kernel, facts)[0] + 1
    except Unavailable as error:
        return (not_known(key, what, error.what, actual=base.value),)
    actual = base.value
    if name == "module_alloc_base":
        if actual >= kernel.symbol("_etext") - DIRECT_REACH:
            reason = "it is unknown whether the kernel has RANDOMIZE_MODULE_REGION_FULL"
            return (not_known(key, what, reason, actual=actual),)
        stext = kernel.number("SYMBOL(_stext)").value
        size, window = PLT_REACH, old_module_window(stext, end, facts.modules.start, page)
    else:
        size = DIRECT_REACH if name == "module_direct_base" else PLT_REACH
        window = module_window(facts.image_place + facts.image_slide.value & ALL, end, size, page)
    return (
        drawn(
            key,
            what,
            default=None,
            actual=actual,
            granularity=page,
            slots=len(window),
            provenance=name,
            computed=f"windows of {size_text(size)} that contain the image",
            note="" if actual in window else NO_PLACE,
        ),
    )


DRAWS: Mapping[str, Callable[[Kernel], Sequence[Randomised]]] = {
    "kernel_image": _image,
    "direct_map": _linear,
    "modules": _modules,
}
