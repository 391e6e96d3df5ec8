# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where firmware's runtime services live while the kernel calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from kvintro.arch.x86_64 import EFI_VA_END, EFI_VA_START
from kvintro.errors import Unavailable
from kvintro.model import Absent, AddressRange, Located
from kvintro.regions import Region, Root, fixed_place
from kvintro.regions.ldt_remap import table_of
from kvintro.structures import TROUBLE

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


class Efi(Region):
    """``EFI_VA_END .. EFI_VA_START`` (the names are swapped: the kernel hands addresses out downwards).

    Mapped by a root of its own, ``efi_mm.pgd`` (arch/x86/platform/efi/efi_64.c:efi_alloc_page_tables).
    """

    key = "efi"
    row = 11
    name = "EFI runtime services"
    macro = "EFI_VA_END"

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol("efi_mm"):
            return Absent("CONFIG_EFI is off")
        if not self._pgd(kernel):
            return Absent("not booted by EFI")
        return fixed_place(AddressRange(EFI_VA_END, EFI_VA_START - 1))

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        return (Root(table_of(kernel, self._pgd(kernel)), "efi_mm"),)

    def _pgd(self, kernel: Kernel) -> int:
        if kernel.source.types == "none":
            raise Unavailable("efi_mm cannot be read without types")
        try:
            return int(kernel.prog["efi_mm"].pgd.value_())
        except TROUBLE as error:
            raise Unavailable(f"efi_mm cannot be read: {error}") from error


REGION = Efi()
