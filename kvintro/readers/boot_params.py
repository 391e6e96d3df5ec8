# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the boot loader and the unpacker left behind in ``boot_params``; no types are needed."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from kvintro.arch import x86_64_kaslr
from kvintro.arch.x86_64 import DEFAULT_TEXT, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.readers.structures import TROUBLE, number, size_of, struct_at, text_at

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_RAM = 1  # E820_TYPE_RAM
_MAX_E820 = 128
_EFI_SIGNATURES = (b"EL64", b"EL32")  # EFI64_LOADER_SIGNATURE, EFI32_LOADER_SIGNATURE
# boot_params.hdr.type_of_loader >> 4, Documentation/arch/x86/boot.rst.
_GRUB, _QEMU, _KEXEC = 0x7, 0xB, 0xD
_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)([kmgtpe]?)", re.I)  # lib/cmdline.c:memparse
_SUFFIXES = ("", "k", "m", "g", "t", "p", "e")
_MAX_ACPI_TABLES = 1 << 10
_MAX_SRAT = 1 << 20
# struct acpi_table_srat is its header and 12 reserved bytes; struct acpi_srat_mem_affinity.
_SRAT, _SRAT_HEAD, _MEMORY_AFFINITY, _HOT_PLUGGABLE = b"SRAT", 48, 1, 1 << 1
_AFFINITY = struct.Struct("<8xQQ4xI8x")
_FEW = 1 << 7
_SETUP_DATA = struct.Struct("<QII")  # struct setup_data: next, type, len
_SETUP_INDIRECT, _SETUP_INDIRECT_BODY = 1 << 31, struct.Struct("<IIQQ")
_MAX_SETUP_DATA = 64
_DEFAULT_LOAD = DEFAULT_TEXT - START_KERNEL_MAP
_DEFAULT_ALIGN = 2 << 20
# Documentation/arch/x86/boot.rst and zero-page.rst: offset and size of fields on which boot loaders and
# kernels agreed for good.
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
_E820_TABLE, _E820_ENTRY = 0x2D0, struct.Struct("<QQI")


def boot_param(kernel: Kernel, name: str) -> int:
    """A field of ``boot_params``: what the boot loader and the unpacker left. No types are needed.

    :raises Unavailable: it is not in the source.
    """
    offset, size = _ZERO_PAGE[name]
    return int.from_bytes(kernel.read(kernel.symbol("boot_params") + offset, size), "little")


def booted_by_efi(kernel: Kernel) -> bool:
    """Whether the kernel was booted through EFI (kaslr.c:process_efi_entries asks for the same signature).

    :raises Unavailable: ``boot_params`` is not in the source.
    """
    return boot_param(kernel, "efi_loader_signature").to_bytes(4, "little") in _EFI_SIGNATURES


def image_sizes(kernel: Kernel) -> Tuple[int, Optional[int], str]:
    """Bounds of what the unpacker took for the size of the image (misc.c:extract_kernel, needed_size).

    :returns: at least (``kernel_total_size``), at most (of ``output_len``; None if nothing tells), and
        where the bound that is the better estimate was read.
    """
    total = kernel.symbol("_end") - kernel.text.value
    init_size = boot_param(kernel, "init_size")
    if not init_size:
        # The EFI stub hands over a header without it (7e50262229fa "x86/efi: Disregard setup header of
        # loaded image").
        return total, None, "_text to _end"
    most = x86_64_kaslr.unpacked_at_most(init_size)
    return (total, most, "boot_params.hdr.init_size") if most > total else (total, total, "_text to _end")


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


@dataclass(frozen=True)
class Unpacking:
    """What the unpacker knew of physical memory when it chose a place for the image.

    :ivar load: where the image stays if no other place is found: ``output`` of ``choose_random_location``.
    :ivar ram: (start, end) of RAM that it could use, ends exclusive.
    :ivar taken: (start, end) of what must not be overwritten (``mem_avoid_init``).
    :ivar complete: whether that is all that kept it from places; otherwise there may have been fewer.
    """

    load: int
    ram: List[Tuple[int, int]]
    taken: List[Tuple[int, int]]
    complete: bool


def unpacking(kernel: Kernel) -> Unpacking:
    """What ``arch/x86/boot/compressed/kaslr.c`` had to go by, from what ``boot_params`` still has.

    :raises Unavailable: it is not in the source, or it does not tell where the packed kernel was.
    """
    align, preferred = alignment(kernel)
    loader = boot_param(kernel, "type_of_loader") >> 4
    start, init_size = boot_param(kernel, "code32_start"), boot_param(kernel, "init_size")
    if loader == _KEXEC or not (start and init_size):
        # kexec jumps to where it loaded the kernel, and leaves code32_start at its default
        # (arch/x86/kernel/kexec-bzimage64.c).
        raise Unavailable("the boot loader did not leave behind where it put the packed kernel")
    # head_64.S:startup_64: it unpacks to where it was loaded, aligned, and not below LOAD_PHYSICAL_ADDR.
    load = max(-(-start // align) * align, preferred)
    # The packed kernel was moved to the end of [load, load + init_size) first. Its payload is behind most of
    # it, so that it begins a little earlier than this; nothing fits in front of it in any case unless it was
    # loaded above 512 MB.
    taken = [(load + init_size - min(boot_param(kernel, "payload_length"), init_size), load + init_size)]
    taken += boot_initrd(kernel)
    line = _wide(kernel, "cmd_line_ptr")
    if line:
        # Its length is not kept, which does not matter: places are multiples of 2 MB.
        taken.append((line, line + 1))
    ram = boot_ram(kernel)
    immovable = _immovable(kernel)
    if immovable:
        # kaslr.c:process_mem_region
        ram = [
            (max(start, low), min(end, high))
            for start, end in ram
            for low, high in immovable
            if max(start, low) < min(end, high)
        ]
    setup_data = _setup_data(kernel)
    words = command_line_words(kernel)
    options = None if words is None else _memory_options(words)
    # The unpacker sees the boot loader's command line only; what is built in is not told apart here.
    if options not in (None, (1 << 64, [])) and kernel.find_symbol("builtin_cmdline") is not None:
        options = None
    if options is not None:
        limit, avoided = options
        ram = [(start, min(end, limit)) for start, end in ram if start < limit]
        taken += avoided
    complete = (
        loader in (_GRUB, _QEMU)  # they keep boot_params below 1 MB
        and load <= x86_64_kaslr.HIGHEST_MINIMUM
        and setup_data is not None
        and options is not None
        and immovable is not None
    )
    return Unpacking(load, ram, taken + (setup_data or []), complete)


def _memory_options(words: Sequence[str]) -> Optional[Tuple[int, List[Tuple[int, int]]]]:
    """What options take away from the unpacker (kaslr.c:handle_mem_options): the end of memory, and (start,
    end) of what to avoid. None if there are others than are looked at here.
    """
    limit, avoided = 1 << 64, []
    for word in words:
        name, _, value = word.partition("=")
        if name == "--":
            break
        if name == "hugepages":
            return None
        if name == "mem" and value != "nopentium":
            size, _ = _memparse(value)
            if not size:
                break
            limit = min(limit, size)
        if name != "memmap":
            continue
        for part in value.split(","):
            size, rest = _memparse(part)
            if size is None or part.startswith("exactmap"):
                break
            if rest[:1] == "@":
                continue
            start = (_memparse(rest[1:])[0] or 0) if rest[:1] in ("#", "$", "!") else 0
            if start:
                avoided.append((start, start + size))
            elif size:
                limit = min(limit, size)
    return limit, avoided


def _memparse(text: str) -> Tuple[Optional[int], str]:
    """lib/cmdline.c:memparse: a size, None if there is none, and what follows it."""
    found = _SIZE.match(text)
    if found is None:
        return None, text
    digits = found[1]
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" else 10
    try:
        number = int(digits, base)
    except ValueError:
        return None, text
    return number << 10 * _SUFFIXES.index(found[2].lower()), text[found.end() :]


def _setup_data(kernel: Kernel) -> Optional[List[Tuple[int, int]]]:
    """(start, end) of what the boot loader passed on in a list; None if it cannot be followed.

    The kernel reserves that memory (arch/x86/kernel/setup.c:memblock_x86_reserve_range_setup_data).
    """
    taken: List[Tuple[int, int]] = []
    try:
        at = boot_param(kernel, "setup_data")
        while at:
            if len(taken) >= _MAX_SETUP_DATA:
                return None
            following, kind, size = _SETUP_DATA.unpack(kernel.read_physical(at, _SETUP_DATA.size))
            taken.append((at, at + _SETUP_DATA.size + size))
            if kind == _SETUP_INDIRECT:
                body = kernel.read_physical(at + _SETUP_DATA.size, _SETUP_INDIRECT_BODY.size)
                _, _, length, address = _SETUP_INDIRECT_BODY.unpack(body)
                taken.append((address, address + length))
            at = following
    except Unavailable:
        return None
    return taken


def _immovable(kernel: Kernel) -> Optional[List[Tuple[int, int]]]:
    """(start, end) of the memory that firmware's SRAT does not call hot-pluggable, in its order; empty if it
    makes no difference, None if the source does not tell.

    With such a table the unpacker uses no other memory, and looks at it entry by entry
    (arch/x86/boot/compressed/acpi.c:count_immovable_mem_regions).
    """
    try:
        if not kernel.has_symbol("offline_pages", code=True):
            return []  # Without CONFIG_MEMORY_HOTREMOVE.
        head = struct_at(kernel, "struct acpi_table_list", kernel.symbol("acpi_gbl_root_table_list"))
        count, tables = number(head, "current_table_count"), number(head, "tables")
        if not 0 < count <= _MAX_ACPI_TABLES:
            return None
        size = size_of(kernel, "struct acpi_table_desc")
        for at in range(tables, tables + count * size, size):
            found = struct_at(kernel, "struct acpi_table_desc", at)
            if found.signature.ascii.to_bytes_()[: len(_SRAT)] == _SRAT:
                length = min(number(found, "length"), _MAX_SRAT)
                return _memory_affinity(kernel.read_physical(number(found, "address"), length))
    except TROUBLE:
        return None
    return []


def _memory_affinity(table: bytes) -> Optional[List[Tuple[int, int]]]:
    found: List[Tuple[int, int]] = []
    at = _SRAT_HEAD
    while at + 2 < len(table):
        kind, length = table[at], table[at + 1]
        if not length:
            return []
        if kind == _MEMORY_AFFINITY and at + _AFFINITY.size <= len(table):
            start, size, flags = _AFFINITY.unpack_from(table, at)
            if size and not flags & _HOT_PLUGGABLE:
                found.append((start, start + size))
        at += length
    # The kernel gives up at MAX_NUMNODES * 2, which the build decides.
    return found if len(found) < _FEW else None


def command_line_words(kernel: Kernel) -> Optional[List[str]]:
    """The words of the kernel's command line; None if it cannot be read."""
    try:
        return text_at(kernel, kernel.value("saved_command_line").value).split()
    except Unavailable:
        return None
