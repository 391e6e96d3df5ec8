# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: the number of places that KASLR chose from.

The arithmetic is in :mod:`kvintro.arch.aarch64.slots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Mapping, Optional, Sequence

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.arch.aarch64.places import ram
from kvintro.arch.aarch64.slots import IMAGE_ALIGN, image_window, linear_align, linear_slots
from kvintro.errors import Unavailable
from kvintro.model import ALL, Randomised
from kvintro.readers.command_line import command_line_words
from kvintro.readers.randomness import NO_PLACE, drawn, not_drawn, not_known

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
    try:
        # drivers/firmware/efi/libstub/arm64-stub.c:handle_kernel_image
        by_efi = kernel.value("efi").value & ALL
    except Unavailable as error:
        return not_known(key, what, error.what, actual=actual)
    if not by_efi:
        return not_drawn(
            key,
            what,
            "the boot loader chose it: only the EFI stub chooses at random",
            actual=actual,
            provenance=facts.image_offset.provenance,
        )
    return not_known(key, what, "firmware's memory map, which limited the choice, is not kept", actual=actual)


def _why_off(kernel: Kernel) -> str:
    words: Optional[Sequence[str]] = command_line_words(kernel)
    if words is not None and "nokaslr" in words:
        return "nokaslr on the command line"
    return "neither the boot loader nor the processor provided a random number, or KASLR was switched off"


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


DRAWS: Mapping[str, Callable[[Kernel], Sequence[Randomised]]] = {
    "kernel_image": _image,
    "direct_map": _linear,
}
