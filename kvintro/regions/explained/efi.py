# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about EFI's runtime services."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("uefi", "runtime services", "efi_pgd"),
    purpose="""
    Firmware leaves code and data behind that the running system calls to read and write firmware
    variables, to set the clock and to reboot. Firmware can be told only once where this lives in virtual
    memory: here, and at the same place after every kexec.
    """,
    users="""
    efivarfs and the clock, through a work queue that makes the calls with firmware's own page tables
    loaded; reboot and pstore, which cannot wait for a queue, call directly.
    """,
    definitions=(
        macro("EFI_VA_START", "-4 GB: the upper end, from which addresses are handed out downwards"),
        macro("EFI_VA_END", "-68 GB: the lower end; START and END are the reverse of the usual meaning"),
        config("EFI", "the kernel knows EFI", "efi_mm"),
        config(
            "EFI_RUNTIME_MAP",
            "/sys/firmware/efi/runtime-map, which kexec needs to pass the places on",
            "efi_runtime_map_init",
        ),
        boot("noefi", "no runtime services; nothing is mapped"),
        boot("efi=", "noruntime does the same, debug prints the map"),
    ),
    translation="""
    By page tables of its own, efi_mm.pgd, which are loaded for the time of a call. The kernel's usual
    tables map nothing here. Besides this region, these tables map firmware's memory at its physical
    addresses, low down, where firmware may still expect itself, and share the rest of the kernel half.
    """,
    attacker="""
    Firmware's code runs with the kernel's rights. Old firmware mixes code and data and is then mapped
    writable and executable; newer firmware brings a table of attributes that the kernel applies.
    """,
    debugger="""
    "kvintro ptdump --root efi" shows the tables; efi.memmap has the descriptors with EFI_MEMORY_RUNTIME and
    their virt_addr. A fault in here with efi_mm loaded is firmware's bug, not Linux's.
    """,
    changed="The size of 64 GB is arbitrary. Old kernels could use the usual tables instead (efi=old_map).",
    sources=(
        source(
            "bounds, and which end is which",
            "arch/x86/include/asm/pgtable_64_types.h:EFI_VA_START",
            "arch/x86/platform/efi/efi_64.c:efi_va",
        ),
        source(
            "own tables, what they share, mappings at physical addresses",
            "arch/x86/platform/efi/efi_64.c:efi_alloc_page_tables",
            "arch/x86/platform/efi/efi_64.c:efi_sync_low_kernel_mappings",
            "arch/x86/platform/efi/efi_64.c:efi_map_region",
        ),
        source("the table of attributes", "arch/x86/platform/efi/efi_64.c:efi_runtime_update_mappings"),
        source(
            "the queue, and what goes past it",
            "drivers/firmware/efi/runtime-wrappers.c:efi_queue_work",
            "drivers/firmware/efi/runtime-wrappers.c:virt_efi_reset_system",
            "drivers/firmware/efi/runtime-wrappers.c:set_variable_nonblocking",
        ),
        source(
            "noefi, efi=", "drivers/firmware/efi/efi.c:setup_noefi", "drivers/firmware/efi/efi.c:noruntime"
        ),
        source("EFI_RUNTIME_MAP", "drivers/firmware/efi/Kconfig:EFI_RUNTIME_MAP", releases=("6.1",)),
        source("EFI_RUNTIME_MAP", "arch/x86/Kconfig:EFI_RUNTIME_MAP", releases=("6.12", "7.3")),
        source(
            "64 GB is arbitrary", "Documentation/x86/x86_64/mm.rst:this size is arbitrary", releases=("6.1",)
        ),
        source(
            "64 GB is arbitrary",
            "Documentation/arch/x86/x86_64/mm.rst:this size is arbitrary",
            releases=("6.12", "7.3"),
        ),
    ),
)
