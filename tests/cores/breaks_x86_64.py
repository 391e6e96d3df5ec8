# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes that break each rule of x86-64, and the other rules that they break."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import pytest

from kvintro.arch.x86_64 import ALL, NX, PTI_USER_ROOT_BIT, RW, USER
from kvintro.arch.x86_64.facts import x86_facts, x86_form
from kvintro.kernels import Kernel
from kvintro.model import Placement
from kvintro.queries.modules import module_memory
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View
from kvintro.readers.processes import each_mm, mm_of, root_of
from tests.cores.patched import Break, Breaks, Patched, frame_of, mapped_from, symbol, vmalloc_page


def change(k: Patched, virtual: int, *, add: int = 0, take: int = 0, root: Optional[int] = None) -> None:
    """The rights are added at every level."""
    k.change(virtual, add=add, take=take, tables_add=add & ~NX, tables_take=take & NX, root=root)


def _empty_slot(kernel: Kernel) -> Tuple[int, int]:
    """(address of an entry, first address that it maps) of a root entry that belongs to no region."""
    geometry = x86_form(kernel)
    placed = [found.range for region in kernel.regions for found in [kernel.locate(region)]
              if isinstance(found, Placement)]  # fmt: skip
    for index in range(511, 256, -1):
        start = geometry.sign_extend(index << geometry.pgdir_shift)
        end = start + (1 << geometry.pgdir_shift) - 1
        entry = kernel.root.value + 8 * index
        free = not any(part.start <= end and start <= part.end for part in placed)
        if free and kernel.read_physical(entry, 8) == bytes(8):
            return entry, start
    pytest.skip("every entry of the root is some region's")


def _entry(kernel: Kernel, address: int) -> int:
    index = x86_form(kernel).index(address, x86_form(kernel).levels)
    return int.from_bytes(kernel.read_physical(kernel.root.value + 8 * index, 8), "little")


def _text(k: Patched) -> None:
    change(k, k.symbol("_text") + 0x1000, add=RW)


def _rodata_alias(k: Patched) -> None:
    physical = k.walk(k.symbol("__start_rodata")).physical
    assert physical is not None
    change(k, k.linear_offset.value + physical, add=RW)


def _firmware(k: Patched) -> None:
    region = k.regions.efi
    found = k.locate(region)
    if not isinstance(found, Placement):
        pytest.skip(found.reason)
    (root,) = region.roots(k)
    view = View.of(k, found.range.start, found.range.end, root.table)
    at = next(low for low, _, key in view.parts(found.range.start, found.range.end) if key & 1)
    change(k, at, add=RW, take=NX, root=root.table)


def _module_text(k: Patched) -> None:
    pieces = [piece for piece in module_memory(k) if piece.kind in ("text", "core")]
    if not pieces:
        pytest.skip("no module is loaded")
    change(k, pieces[0].start, add=RW)


def _user_half(k: Patched) -> None:
    if not k.isolation.value:
        pytest.skip("page-table isolation is off")
    # The user half gets the entry of the direct map.
    base = k.linear_offset.value
    index = x86_form(k).index(base, x86_form(k).levels)
    k.patches[(k.root.value | PTI_USER_ROOT_BIT) + 8 * index] = _entry(k, base)


def _process_root(k: Patched) -> None:
    process = next(iter(each_mm(k, Damage())))
    base = k.linear_offset.value
    index = x86_form(k).index(base, x86_form(k).levels)
    k.patches[root_of(k, mm_of(k, process)) + 8 * index] = _entry(k, base) ^ 0x1000


def _ram(k: Kernel) -> int:
    """An address of ordinary memory in the direct map."""
    return mapped_from(k, k.linear_offset.value + (32 << 20))


def _other_frame(k: Patched) -> None:
    last = k.walk(_ram(k)).steps[-1]
    assert last.value is not None
    k.patches[last.entry_address] = last.value ^ 1 << 25


def _stray(k: Patched) -> None:
    entry, _ = _empty_slot(k)
    k.patches[entry] = _entry(k, vmalloc_page(k))


def _free_table(k: Patched) -> None:
    entry, _ = _empty_slot(k)
    k.patches[entry] = frame_of(k, "free") << 12 | 0x63


def _free_page(k: Patched) -> None:
    k.put(vmalloc_page(k), frame_of(k, "free") << 12 | NX | 0x63)


def _overlap(k: Patched) -> None:
    k.variables[symbol(k, "vmalloc_base")] = k.linear_offset.value


def _phys_base(k: Patched) -> None:
    k.variables[symbol(k, "phys_base")] = x86_facts(k).phys_base.value + 0x200000 & ALL


BREAKS: Dict[str, Break] = {
    "overlap": _overlap,
    "vmcoreinfo": _phys_base,
    "linear": _other_frame,
    "strays": _stray,
    "wx": _text,
    "efi_wx": _firmware,
    "text_ro": _text,
    "rodata_ro": _rodata_alias,
    "data_nx": lambda k: change(k, k.symbol("init_task"), take=NX),
    "direct_map_nx": lambda k: change(k, _ram(k), take=NX),
    "region_rights": lambda k: change(k, vmalloc_page(k), take=NX),
    "module_rights": _module_text,
    "user_bit": lambda k: change(k, k.symbol("init_task"), add=USER),
    "pti_user_half": _user_half,
    "process_roots": _process_root,
    "contents": lambda k: k.put(vmalloc_page(k), 0),
    "table_pages": _free_table,
    "mapped_pages": _free_page,
}

X86 = Breaks(
    BREAKS,
    {"kaslr", "pti", "tables", "vmap_areas", "vmap_strays"},
    {
        "proc_iomem": "iomem",
        "proc_meminfo": "meminfo",
        "proc_modules": "modules",
        "proc_vmallocinfo": "vmallocinfo",
    },
    {
        *("overlap", "strays", "efi_wx", "rodata_ro", "text_ro", "data_nx", "pti_user_half", "contents"),
        *("mapped_pages", "proc_iomem", "proc_modules", "kaslr", "vmcoreinfo", "tables"),
    },
)
