# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: a kernel's address space as VMCOREINFO describes it.

Mirrors ``arch/arm64/kernel/vmcore_info.c:arch_crash_save_vmcoreinfo`` (before 6.9 ``crash_core.c``). Most of
its numbers are printed as 0x..., others in decimal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Mapping, Optional, Sequence, Tuple

from kvintro.arch.aarch64.form import Arm64Form
from kvintro.arch.aarch64.space import with_vmalloc_end
from kvintro.arch.address_space import (
    ANY_BASE,
    ToldAddressSpace,
    Variable,
    number,
    optional_number,
    symbol_in,
)
from kvintro.model import ALL, AddressRange

_MAX_IMAGE = 1 << 30
#: Maximum distance of modules from the image (arch/arm64/mm/init.c:module_init_limits).
_MODULE_REACH = 2 << 30


@dataclass(frozen=True)
class Arm64AddressSpace(ToldAddressSpace):
    """See :class:`kvintro.arch.address_space.AddressSpace`.

    The init memory that follows the constant part of the image is unmapped once the kernel has booted.
    """

    form: Arm64Form

    @property
    def modules(self) -> AddressRange:
        """All addresses within the maximum distance of modules from the image."""
        start = max(self.image.start - _MODULE_REACH, self.form.linear_end)
        return AddressRange(start, min(self.image.end + _MODULE_REACH, ALL))

    @property
    def libkdumpfile_walks(self) -> bool:
        """False for a 64K kernel for 52 bits on a processor with 48.

        libkdumpfile takes the root for a table of 48 bits, and uses the first of its 1,024 entries. But the
        processor is given the last 64 of them (arch/arm64/include/asm/assembler.h:offset_ttbr1).
        """
        form = self.form
        return form.granule < 16 or form.address_bits == form.built_bits

    def first_struct(self, variable: Variable, offset: int) -> int:
        """PHYS_OFFSET."""
        return self.form.page_offset - offset & ALL

    def other_forms(self) -> Sequence[Arm64Form]:
        """The other number of address bits, as a kernel for 52 bits also runs on processors with fewer."""
        form = self.form
        if form.built_bits == form.least_bits:
            return ()
        bits = form.least_bits if form.address_bits == form.built_bits else form.built_bits
        return (Arm64Form.of(form.granule, form.built_bits, bits),)


def space_of(lines: Mapping[str, str]) -> Arm64AddressSpace:
    """The address space that the lines of VMCOREINFO describe.

    :raises ValueError: a number is malformed or impossible.
    """
    form = _form(lines)
    offset = number(lines, "NUMBER(kimage_voffset)", None, ANY_BASE) & ALL
    image = _image(lines, form)
    root = symbol_in(lines, "swapper_pg_dir", image)
    bits = number(lines, "NUMBER(MAX_PHYSMEM_BITS)", 52)
    memstart = optional_number(lines, "NUMBER(PHYS_OFFSET)")
    if not 32 <= bits <= 52:
        raise ValueError("its MAX_PHYSMEM_BITS is not one that a kernel has")
    return Arm64AddressSpace(
        form=form,
        root=root - offset & ALL,
        image=image,
        image_offset=offset,
        image_by="kimage_voffset",
        physical_bits=bits,
        constant=_constant(lines, form, root),
        linear=form.linear_map,
        linear_offset=None if memstart is None else form.page_offset - memstart & ALL,
        linear_by="PHYS_OFFSET",
        memory_map=_memory_map(lines, form),
    )


def _constant(lines: Mapping[str, str], form: Arm64Form, root: int) -> AddressRange:
    start = number(lines, "SYMBOL(_stext)", None, 16) & -form.page_size
    if not start < root < start + _MAX_IMAGE:
        raise ValueError("its swapper_pg_dir does not follow its _stext")
    return AddressRange(start, root)


def _memory_map(lines: Mapping[str, str], form: Arm64Form) -> Optional[Tuple[int, int]]:
    """VMEMMAP_START and sizeof(struct page); None if VMCOREINFO does not have the end of vmalloc."""
    end, size = optional_number(lines, "NUMBER(VMALLOC_END)"), optional_number(lines, "SIZE(page)")
    if end is None or not size or size > form.page_size:
        return None
    space = with_vmalloc_end(form, size, end)
    return None if space is None else (space.vmemmap_start, size)


def _form(lines: Mapping[str, str]) -> Arm64Form:
    size = number(lines, "PAGESIZE")
    built = number(lines, "NUMBER(VA_BITS)", None, ANY_BASE)
    if "NUMBER(TCR_EL1_T1SZ)" in lines or built > 48:
        actual = 64 - number(lines, "NUMBER(TCR_EL1_T1SZ)", None, ANY_BASE)
    else:
        # This exists since 5.9: bbdbc11804ff "arm64/crash_core: Export TCR_EL1.T1SZ in vmcoreinfo".
        actual = built
    if size not in (1 << 12, 1 << 14, 1 << 16):
        raise ValueError("its PAGESIZE is not one that a kernel has")
    try:
        form = Arm64Form.of(size.bit_length() - 1, built, actual)
    except ValueError:
        raise ValueError("its VA_BITS and TCR_EL1_T1SZ are not those of a kernel") from None
    return replace(form, signed=bool(optional_number(lines, "NUMBER(KERNELPACMASK)")))


def _image(lines: Mapping[str, str], form: Arm64Form) -> AddressRange:
    """The image begins at KIMAGE_VADDR + KERNELOFFSET, which is at most a segment (64 KB) before _stext."""
    stext = number(lines, "SYMBOL(_stext)", None, 16)
    offset = number(lines, "KERNELOFFSET", 0, 16)
    if stext <= form.linear_end or offset < 0 or stext - offset < form.linear_end:
        raise ValueError("its _stext is not in a kernel's image")
    start = stext & -form.page_size
    if "NUMBER(MODULES_END)" in lines:
        start = (number(lines, "NUMBER(MODULES_END)", None, ANY_BASE) + offset) & ALL
        if not 0 <= stext - start < 2 << 20:
            raise ValueError("its KERNELOFFSET is not one that a kernel has")
    return AddressRange(start, min(start + _MAX_IMAGE - 1, ALL))
