# SPDX-License-Identifier: LGPL-2.1-or-later
"""The explanation of EFI's runtime services."""

from kvintro.regions.explained import Explanation, boot, config, macro, source

EXPLAIN = Explanation(
    also=("uefi", "runtime services", "efi_pgd"),
    purpose="""
    Firmware leaves code and data in memory that the running system uses to read and write firmware
    variables, to set the clock and to reboot. The kernel can tell firmware only once at which virtual
    addresses these are. So they are here, and at the same addresses after every kexec.
    """,
    users="""
    efivarfs and the clock, through a work queue that makes the calls with firmware's own page tables
    loaded. Reboot and pstore cannot wait for a queue, so they call directly.
    """,
    definitions=(
        macro("EFI_VA_START", "-4 GB: the upper end; addresses are allocated from here downwards"),
        macro("EFI_VA_END", "-68 GB: the lower end; START and END have the reverse of their usual meaning"),
        config("EFI", "the kernel supports EFI", "efi_mm"),
        config(
            "EFI_RUNTIME_MAP",
            "/sys/firmware/efi/runtime-map, from which kexec passes the addresses to the next kernel",
            "efi_runtime_map_init",
        ),
        boot("noefi", "no runtime services; nothing is mapped"),
        boot("efi=", "noruntime has the same effect; debug prints the map"),
    ),
    translation="""
    By separate page tables, efi_mm.pgd, which are loaded only during a call. The kernel's usual tables map
    nothing here. In addition to this region, these tables map firmware's memory at its physical addresses,
    because firmware may still use these, and they share the rest of the kernel half.
    """,
    attacker="""
    Firmware's code runs with the kernel's rights. Old firmware mixes code and data, so it is mapped both
    writable and executable. Newer firmware provides a table of attributes, which the kernel applies.
    """,
    debugger="""
    "kvintro ptdump --root efi" shows the tables. efi.memmap has the descriptors with EFI_MEMORY_RUNTIME and
    their virt_addr. A fault in this region while efi_mm is loaded is a bug in firmware, not in Linux.
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
