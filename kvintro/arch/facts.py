# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts that several architectures read in the same way, because their kernels tell VMCOREINFO the same."""

from __future__ import annotations

from functools import cached_property
from typing import Generic, Optional, Sequence, Tuple, TypeVar, Union, cast

import drgn

from kvintro.arch.address_space import ToldAddressSpace
from kvintro.errors import Unavailable
from kvintro.kernels import MAX_FIXMAP_SLOTS, Kernel
from kvintro.model import ALL, Absent, AddressRange, Fact, Located, Placement, Root

Space = TypeVar("Space", bound=ToldAddressSpace)

#: KASAN_SHADOW_SCALE_SHIFT of CONFIG_KASAN_GENERIC.
KASAN_SCALE = 3


class ToldFacts(Generic[Space]):
    """Members of :class:`kvintro.kernels.Facts`. Each fact is read once, on first use.

    Subclasses add ``form``, ``fixmap_top`` and ``linear_offset``, and whatever else :class:`Facts` has.
    """

    root_name = "swapper_pg_dir"

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @cached_property
    def address_space(self) -> Space:
        """The address space that VMCOREINFO describes.

        :raises Unavailable: no kernel can have such an address space.
        """
        arch = self._kernel.arch
        try:
            return cast(Space, arch.address_space(self._kernel.source.vmcoreinfo))
        except ValueError as error:
            raise Unavailable(f"VMCOREINFO does not describe a kernel of {arch.name}: {error}") from None

    @cached_property
    def root(self) -> Fact[int]:
        """Physical address of the kernel's own root table."""
        return Fact(self.address_space.root, "VMCOREINFO swapper_pg_dir")

    @cached_property
    def image_offset(self) -> Fact[int]:
        """Virtual minus physical address in the image."""
        return Fact(self.address_space.image_offset, f"VMCOREINFO {self.address_space.image_by}")

    @cached_property
    def section_size_bits(self) -> Fact[int]:
        """SECTION_SIZE_BITS."""
        return self._kernel.number("NUMBER(SECTION_SIZE_BITS)")

    def firmware_root(self) -> Union[Root, Absent]:
        """efi_mm's root (``asm/efi.h``)."""
        kernel = self._kernel
        if not kernel.has_symbol("efi_mm"):
            return Absent("CONFIG_EFI is off")
        try:
            offset = drgn.offsetof(kernel.prog.type("struct mm_struct"), "pgd")
        except LookupError:
            raise Unavailable(
                "efi_mm cannot be read without types", "give -s VMLINUX or --btf FILE"
            ) from None
        pgd = self.word(kernel.symbol("efi_mm") + offset)
        if not pgd:
            return Absent("the kernel was not booted by EFI")
        return Root(pgd - kernel.linear_offset.value & ALL, "efi_mm")

    def initrd(self) -> Sequence[Tuple[int, int]]:
        """Empty: the initrd's memory is freed once it was unpacked, and its place is not recorded."""
        return ()

    def word(self, address: int) -> int:
        """A value of 64 bits in the kernel's memory."""
        return int.from_bytes(self._kernel.read(address & ALL, 8), "little")

    def bounds(self, start: str, end: str) -> AddressRange:
        """A range whose start and end VMCOREINFO has, by their names there.

        :raises Unavailable: VMCOREINFO does not say.
        """
        low, high = (self._kernel.number(f"NUMBER({name})").value & ALL for name in (start, end))
        return AddressRange(low, high - 1)

    def slot(self, name: str) -> int:
        """A number of ``enum fixed_addresses``.

        :raises Unavailable: there are no types, or it is invalid.
        """
        try:
            found = int(self._kernel.prog.constant(name).value_())
        except LookupError:
            raise Unavailable("its slots are an enum, which cannot be read without types") from None
        if not 0 <= found < MAX_FIXMAP_SLOTS:
            raise Unavailable(f"{name} of enum fixed_addresses is {found}, which is invalid")
        return found

    @cached_property
    def device_tree(self) -> AddressRange:
        """The fixmap's slots for the device tree, FIX_FDT to FIX_FDT_END.

        :raises Unavailable: there are no types, or they are invalid.
        """
        first, last = self.slot("FIX_FDT"), self.slot("FIX_FDT_END")
        if last > first:
            raise Unavailable(f"FIX_FDT is {first} and FIX_FDT_END {last}, which is invalid")
        top, form = self._kernel.facts.fixmap_top, self._kernel.form
        return AddressRange(
            top - (first << form.page_shift), top - (last << form.page_shift) + form.page_size - 1
        )


def ram(kernel: Kernel) -> Optional[Tuple[int, int]]:
    """Physical addresses of the nodes' first page frame and of the end of their last; None if unknown."""
    try:
        spans = [(first, end) for first, end in kernel.node_spans() if first < end]
    except Unavailable:
        return None
    if not spans:
        return None
    shift = kernel.page_shift
    return min(first for first, _ in spans) << shift, max(end for _, end in spans) << shift


def of_nodes(kernel: Kernel, whole: AddressRange, provenance: str, base: int, size: int) -> Placement:
    """A range of which the nodes' page frames use a part.

    :param base: address that belongs to page frame 0, modulo 2^64.
    :param size: bytes for each page frame.
    """
    used, note, span = None, "", ram(kernel)
    if span is not None:
        first, end = (address >> kernel.page_shift for address in span)
        low, high = base + first * size & ALL, base + end * size - 1 & ALL
        if low in whole and high in whole and low <= high:
            used, note = AddressRange(low, high), "from the first page frame of the nodes to the last"
    return Placement(whole, provenance, used=used, used_note=note)


def no_modules(kernel: Kernel) -> Optional[Absent]:
    """Why a kernel has no modules; None if it may have some."""
    if kernel.source.symbols != "none" and not kernel.has_symbol("__module_address", code=True):
        return Absent("CONFIG_MODULES is off")
    return None


def shadow_place(shadow: Optional[AddressRange]) -> Located:
    """The place of KASAN's shadow.

    :param shadow: None if the kernel has none.
    """
    if shadow is None:
        return Absent("CONFIG_KASAN is off, or it needs no shadow")
    return Placement(shadow, "constant", note="maps mostly one shared page of zeros")
