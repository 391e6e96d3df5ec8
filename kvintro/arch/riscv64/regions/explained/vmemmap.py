# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to know about riscv64's virtual memory map."""

from kvintro.regions.explained import Explanation, macro, source, variable
from kvintro.regions.explained.shared import PAGES

EXPLAIN = Explanation(
    also=("struct page", "mem_map", "memmap", "page structures"),
    purpose=PAGES,
    users="The memory manager. Every page of RAM has an entry here, which says how the page is used.",
    definitions=(
        macro("VMEMMAP_START", "the start of the range that the mode reserves"),
        macro("VMEMMAP_END", "its end, which is VMALLOC_START"),
        macro("vmemmap", "the address of page frame 0's entry: VMEMMAP_START less vmemmap_start_pfn entries"),
        variable("vmemmap_start_pfn", "the page frame whose entry is at VMEMMAP_START", shows="number"),
    ),
    translation="""
    page = vmemmap + pfn * sizeof(struct page). The array itself is translated by page tables.
    """,
    attacker="It starts at the same address on every boot of a mode.",
    debugger="""
    RAM seldom begins at physical address 0, so the entry of page frame 0 is below the region: only entries of
    memory sections are mapped.
    """,
    sources=(
        source(
            "bounds",
            "arch/riscv/include/asm/pgtable.h:VMEMMAP_START",
            "arch/riscv/include/asm/pgtable.h:vmemmap_start_pfn",
            releases=("6.12",),
        ),
    ),
)
