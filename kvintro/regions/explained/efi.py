# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about EFI's runtime services."""

from kvintro.regions.explained import Explanation, boot, config, macro

EXPLAIN = Explanation(
    also=("uefi", "runtime services", "efi_pgd"),
    purpose="""
    Firmware leaves code and data behind that the running system calls to read and write its variables, to
    set the clock and to reboot. It may be told only once where it is to live in virtual memory: here, and
    at the same place after every kexec.
    """,
    users="""
    efivarfs, reboot and pstore, through a work queue that calls with firmware's own page tables
    loaded.
    """,
    definitions=(
        macro("EFI_VA_START", "-4 GB: the upper end, from which addresses are handed out downwards"),
        macro(
            "EFI_VA_END", "-68 GB: the lower end; the two names are the wrong way round for everybody else"
        ),
        config("EFI", "the kernel knows EFI", "efi_mm"),
        config(
            "EFI_RUNTIME_MAP",
            "/sys/firmware/efi/runtime-map, which kexec needs to hand the places on",
            "efi_runtime_map_init",
        ),
        boot("noefi", "no runtime services; nothing is mapped"),
        boot("efi=", "noruntime does the same, debug prints the map"),
    ),
    translation="""
    By page tables of its own, efi_mm.pgd, which are loaded for the time of a call. The kernel's usual
    tables have nothing here. Besides this region they map memory at its physical addresses, low down,
    where firmware still expects itself, and share the rest of the kernel half.
    """,
    attacker="""
    Firmware's code runs with the kernel's rights. Old firmware mixes code and data, and is mapped
    writable and executable then; newer brings a table of attributes that the kernel applies.
    """,
    debugger="""
    "kvintro ptdump --root efi" shows the tables, efi.memmap the descriptors with EFI_MEMORY_RUNTIME and
    their virt_addr. A fault in here with efi_mm loaded is firmware's bug, not Linux's.
    """,
    changed="64 GB is a choice, not a need. Old kernels could use the usual tables instead (efi=old_map).",
)
