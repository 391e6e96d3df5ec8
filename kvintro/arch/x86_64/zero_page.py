# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads fields of ``boot_params``, from the boot loader and the unpacker. Needs no types."""

from __future__ import annotations

from typing import List, Tuple

from kvintro.kernels import Kernel

# Documentation/arch/x86/boot.rst and zero-page.rst: offset and size of fields that never change, as boot
# loaders and kernels both use them.
_ZERO_PAGE = {
    "ext_ramdisk_image": (0xC0, 4),
    "ext_ramdisk_size": (0xC4, 4),
    "ext_cmd_line_ptr": (0xC8, 4),
    "efi_loader_signature": (0x1C0, 4),
    "e820_entries": (0x1E8, 1),
    "type_of_loader": (0x210, 1),
    "loadflags": (0x211, 1),
    "code32_start": (0x214, 4),
    "ramdisk_image": (0x218, 4),
    "ramdisk_size": (0x21C, 4),
    "cmd_line_ptr": (0x228, 4),
    "kernel_alignment": (0x230, 4),
    "payload_length": (0x24C, 4),
    "setup_data": (0x250, 8),
    "pref_address": (0x258, 8),
    "init_size": (0x260, 4),
}
#: Flag in boot_params.hdr.loadflags: KASLR was on.
KASLR_FLAG = 1 << 1


def boot_param(kernel: Kernel, name: str) -> int:
    """A field of ``boot_params``.

    :raises Unavailable: it is not in the source.
    """
    offset, size = _ZERO_PAGE[name]
    return int.from_bytes(kernel.read(kernel.symbol("boot_params") + offset, size), "little")


def wide_boot_param(kernel: Kernel, name: str) -> int:
    """A field of ``boot_params`` that is stored in two halves."""
    return boot_param(kernel, name) | boot_param(kernel, f"ext_{name}") << 32


def boot_initrd(kernel: Kernel) -> List[Tuple[int, int]]:
    """(start, end exclusive) of the initrd as the boot loader placed it; empty if there was none."""
    start, size = wide_boot_param(kernel, "ramdisk_image"), wide_boot_param(kernel, "ramdisk_size")
    return [(start, start + size)] if start and size else []
