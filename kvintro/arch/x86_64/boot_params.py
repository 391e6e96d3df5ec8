# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads what the boot loader and the unpacker left in ``boot_params``. Needs no types."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import slots as kaslr_slots
from kvintro.arch.x86_64.form import DEFAULT_TEXT, START_KERNEL_MAP
from kvintro.arch.x86_64.zero_page import boot_initrd, boot_param, wide_boot_param
from kvintro.errors import Unavailable
from kvintro.readers.command_line import command_line_words
from kvintro.readers.structures import TROUBLE, number, size_of, struct_at

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

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
_E820_TABLE, _E820_ENTRY = 0x2D0, struct.Struct("<QQI")


def booted_by_efi(kernel: Kernel) -> bool:
    """Whether the kernel was booted through EFI (kaslr.c:process_efi_entries checks the same signature).

    :raises Unavailable: ``boot_params`` is not in the source.
    """
    return boot_param(kernel, "efi_loader_signature").to_bytes(4, "little") in _EFI_SIGNATURES


def image_sizes(kernel: Kernel) -> Tuple[int, Optional[int], str]:
    """Bounds of the image size that the unpacker used (misc.c:extract_kernel, needed_size).

    :returns: lower bound (``kernel_total_size``), upper bound (of ``output_len``; None if unknown), and where
        the better of the two was read from.
    """
    total = kernel.symbol("_end") - kernel.text.value
    init_size = boot_param(kernel, "init_size")
    if not init_size:
        # The EFI stub passes a header without it (7e50262229fa "x86/efi: Disregard setup header of
        # loaded image").
        return total, None, "_text to _end"
    most = kaslr_slots.unpacked_at_most(init_size)
    return (total, most, "boot_params.hdr.init_size") if most > total else (total, total, "_text to _end")


def alignment(kernel: Kernel) -> Tuple[int, int]:
    """(CONFIG_PHYSICAL_ALIGN, LOAD_PHYSICAL_ADDR), from the boot header."""
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


class Unpacking(NamedTuple):
    """Physical memory as the unpacker saw it when it chose a place for the image.

    :ivar load: where the image stays if no other place is found: ``output`` of ``choose_random_location``.
    :ivar ram: (start, end) of RAM that it could use, ends exclusive.
    :ivar taken: (start, end) of memory that must not be overwritten (``mem_avoid_init``), ends exclusive.
    :ivar complete: whether these are all restrictions; if not, there may have been fewer places.
    """

    load: int
    ram: List[Tuple[int, int]]
    taken: List[Tuple[int, int]]
    complete: bool


def unpacking(kernel: Kernel) -> Unpacking:
    """The input of ``arch/x86/boot/compressed/kaslr.c``, as far as ``boot_params`` still has it.

    :raises Unavailable: ``boot_params`` is not in the source, or does not say where the packed kernel was.
    """
    align, preferred = alignment(kernel)
    loader = boot_param(kernel, "type_of_loader") >> 4
    start, init_size = boot_param(kernel, "code32_start"), boot_param(kernel, "init_size")
    if loader == _KEXEC or not (start and init_size):
        # kexec jumps to where it loaded the kernel, and leaves code32_start at its default
        # (arch/x86/kernel/kexec-bzimage64.c).
        raise Unavailable("the boot loader did not record where it put the packed kernel")
    # head_64.S:startup_64: it unpacks to its load address, aligned, but not below LOAD_PHYSICAL_ADDR.
    load = max(-(-start // align) * align, preferred)
    # The packed kernel was moved to the end of [load, load + init_size) first. The payload is at the end of
    # the packed kernel, which therefore begins a little earlier than this. That does not matter: nothing fits
    # before it anyway, unless it was loaded above 512 MB.
    taken = [(load + init_size - min(boot_param(kernel, "payload_length"), init_size), load + init_size)]
    taken += boot_initrd(kernel)
    line = wide_boot_param(kernel, "cmd_line_ptr")
    if line:
        # Its length is not recorded, but that does not matter: places are multiples of 2 MB.
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
    # The unpacker sees the boot loader's command line only; the built-in part cannot be distinguished here.
    if options not in (None, (1 << 64, [])) and kernel.find_symbol("builtin_cmdline") is not None:
        options = None
    if options is not None:
        limit, avoided = options
        ram = [(start, min(end, limit)) for start, end in ram if start < limit]
        taken += avoided
    complete = (
        loader in (_GRUB, _QEMU)  # they keep boot_params below 1 MB
        and load <= kaslr_slots.HIGHEST_MINIMUM
        and setup_data is not None
        and options is not None
        and immovable is not None
    )
    return Unpacking(load, ram, taken + (setup_data or []), complete)


def _memory_options(words: Sequence[str]) -> Optional[Tuple[int, List[Tuple[int, int]]]]:
    """Restrictions by options (kaslr.c:handle_mem_options): the end of memory, and (start, end) of ranges to
    avoid, ends exclusive. None if there is an option that is not handled here.
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
    """lib/cmdline.c:memparse: a size (None if there is none), and the text after it."""
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
    """(start, end) of the entries of the boot loader's setup_data list; None if it cannot be followed.

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
    """(start, end) of the memory that firmware's SRAT does not list as hot-pluggable, in its order; empty if
    that makes no difference, None if the source does not say.

    If there is such a table, the unpacker uses no other memory, and processes it entry by entry
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
    # The kernel gives up at MAX_NUMNODES * 2, which depends on its configuration.
    return found if len(found) < _FEW else None
