# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: the number of places that KASLR chose from, see :mod:`kvintro.arch.riscv64.slots`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Mapping, Sequence

from kvintro.arch.riscv64.address_space import KERNEL_LINK_ADDR
from kvintro.arch.riscv64.facts import riscv_facts
from kvintro.arch.riscv64.slots import IMAGE_ALIGN, image_slots
from kvintro.errors import Unavailable
from kvintro.model import ALL, Randomised
from kvintro.readers.randomness import NO_PLACE, drawn, not_drawn, not_known, why_off

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


def _image(kernel: Kernel) -> Sequence[Randomised]:
    """arch/riscv/mm/init.c:setup_vm. The physical place is the boot loader's choice."""
    facts = riscv_facts(kernel)
    slide = facts.image_slide
    actual = KERNEL_LINK_ADDR + slide.value
    physical = not_drawn(
        "image_physical",
        "kernel image, physical",
        "the boot loader chose it",
        actual=actual - facts.image_offset.value & ALL,
        provenance=facts.image_offset.provenance,
    )
    return _virtual(kernel, actual), physical


def _virtual(kernel: Kernel, actual: int) -> Randomised:
    key, what = "image_virtual", "kernel image, virtual"
    facts = riscv_facts(kernel)
    slide, default = facts.image_slide, KERNEL_LINK_ADDR
    if not facts.kaslr.value:
        reason = _why_off(kernel)
        return not_drawn(key, what, reason, default=default, actual=actual, provenance=slide.provenance)
    try:
        slots = image_slots(facts.image_end - actual)
    except Unavailable as error:
        return not_known(key, what, error.what, default=default, actual=actual)
    return drawn(
        key,
        what,
        default=default,
        actual=actual,
        granularity=IMAGE_ALIGN,
        slots=slots,
        provenance=slide.provenance,
        computed="1 GB, less the image",
        note="" if slide.value % IMAGE_ALIGN == 0 and slide.value // IMAGE_ALIGN < slots else NO_PLACE,
        place=slide.value // IMAGE_ALIGN,
    )


def _why_off(kernel: Kernel) -> str:
    try:
        if not kernel.has_symbol("kaslr_offset", code=True):
            return "CONFIG_RANDOMIZE_BASE is off"
    except Unavailable:
        pass
    return why_off(kernel, "the boot loader and the processor provided no random number, or the draw was 0")


DRAWS: Mapping[str, Callable[[Kernel], Sequence[Randomised]]] = {"kernel_image": _image}
