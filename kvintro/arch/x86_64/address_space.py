# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: a kernel's address space as VMCOREINFO describes it.

Mirrors ``arch/x86/kernel/vmcore_info_64.c:arch_crash_save_vmcoreinfo`` (before 6.9
``machine_kexec_64.c``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterator, Mapping, Optional, Sequence

from kvintro.arch.address_space import (
    DIRECT_MAP,
    IMAGE,
    MEMORY_MAP,
    AddressSpace,
    Variable,
    Window,
    number,
    symbol_in,
)
from kvintro.arch.x86_64.form import MODULES_END, PAGE_SHIFT, START_KERNEL_MAP, X86Form
from kvintro.model import ALL, AddressRange

WHOLE_MASK = (1 << 52) - 1
_MIN_IMAGE, MAX_IMAGE = 512 << 20, 1 << 30  # KERNEL_IMAGE_SIZE
_MIN_KERNEL_ALIGN = 2 << 20  # arch/x86/include/asm/boot.h


@dataclass(frozen=True)
class X86AddressSpace(AddressSpace):
    """See :class:`kvintro.arch.address_space.AddressSpace`.

    :ivar window: KERNEL_IMAGE_SIZE.
    :ivar page_struct: sizeof(struct page); 0 if unknown.
    """

    form: X86Form
    window: int
    page_struct: int

    @property
    def modules(self) -> AddressRange:
        """From the end of the smallest image window in any version, up to MODULES_END."""
        return AddressRange(START_KERNEL_MAP + _MIN_IMAGE, MODULES_END - 1)

    @property
    def drgn_walks(self) -> bool:
        """False with memory encryption: they treat its bit (C-bit, TDX's shared bit) as an address bit."""
        return self.form.physical_mask == WHOLE_MASK

    def other_forms(self) -> Sequence[X86Form]:
        """The other number of levels."""
        return (replace(self.form, levels=9 - self.form.levels),)

    def windows(self, memory: Optional[AddressRange]) -> Sequence[Window]:
        """The image's window."""
        memory_end = None if memory is None else memory.end + 1
        end = min(START_KERNEL_MAP + self.window - 1, ALL)
        return (Window(IMAGE, START_KERNEL_MAP, end, self.image_offset, self.image_by, memory_end),)

    def corrected(self, variable: Variable) -> X86AddressSpace:
        """Uses ``physical_mask``, which has the bits for memory encryption even if VMCOREINFO does not."""
        mask = variable("physical_mask")
        if mask is None or mask & 0xFFFFF000 != 0xFFFFF000 or mask >> 52:
            return self
        return replace(self, form=replace(self.form, physical_mask=mask))

    def more_windows(self, variable: Variable, memory: Optional[AddressRange]) -> Sequence[Window]:
        """The direct map and the memory map."""
        return tuple(self._by_variables(variable))

    def _by_variables(self, variable: Variable) -> Iterator[Window]:
        offset, frames = variable("page_offset_base"), variable("max_pfn")
        if offset is None or frames is None or not offset >> 63 or not 0 < frames < 1 << 40:
            return
        memory_end = frames << PAGE_SHIFT
        end = min(offset + memory_end - 1, START_KERNEL_MAP - 1)
        if end > offset:
            yield Window(DIRECT_MAP, offset, end, offset, "page_offset_base", memory_end)
        pages, size = variable("vmemmap_base"), self.page_struct
        if pages is not None and size and pages >> 63 and pages + frames * size <= START_KERNEL_MAP:
            yield Window(MEMORY_MAP, pages, pages + frames * size - 1, memory_end=memory_end)


def space_of(lines: Mapping[str, str]) -> X86AddressSpace:
    """The address space that the lines of VMCOREINFO describe.

    :raises ValueError: a number is malformed or impossible.
    """
    base = number(lines, "NUMBER(phys_base)")
    image = AddressRange(START_KERNEL_MAP, START_KERNEL_MAP + MAX_IMAGE - 1)
    root = symbol_in(lines, "swapper_pg_dir", image)
    levels = 5 if number(lines, "NUMBER(pgtable_l5_enabled)", 0) else 4
    form = X86Form(levels, WHOLE_MASK & ~number(lines, "NUMBER(sme_mask)", 0))
    _check_offset(lines, image)
    window = _optional(lines, "NUMBER(KERNEL_IMAGE_SIZE)") or MAX_IMAGE
    offset = START_KERNEL_MAP - base & ALL
    return X86AddressSpace(
        form=form,
        root=root - offset & ALL,
        image=image,
        image_offset=offset,
        image_by="phys_base",
        physical_bits=form.max_physmem_bits,
        window=window,
        page_struct=_optional(lines, "SIZE(page)"),
    )


def _optional(lines: Mapping[str, str], key: str) -> int:
    """A number; 0 if it is missing or malformed."""
    try:
        return number(lines, key, 0)
    except ValueError:
        return 0


def _check_offset(lines: Mapping[str, str], image: AddressRange) -> None:
    """Check KERNELOFFSET: the image cannot have moved by more than its distance from the window's start.

    :raises ValueError: no kernel has this number.
    """
    offset = number(lines, "KERNELOFFSET", 0, 16)
    highest = symbol_in(lines, "_stext", image) - image.start if "SYMBOL(_stext)" in lines else MAX_IMAGE
    if not 0 <= offset <= highest or offset >= MAX_IMAGE or offset % _MIN_KERNEL_ALIGN:
        raise ValueError("its KERNELOFFSET is not one that a kernel has")
