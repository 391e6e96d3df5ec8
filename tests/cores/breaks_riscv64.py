# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes that break each rule on riscv64, and the other rules that they break."""

from __future__ import annotations

from typing import Dict

from kvintro.arch.riscv64.facts import riscv_facts
from kvintro.arch.riscv64.form import EXEC_BIT, PFN_SHIFT, PRESENT, USER_BIT, WRITE_BIT
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.queries.modules import module_memory
from tests.cores.patched import Break, Breaks, Patched, frame_of, mapped_from, ram, symbol, vmalloc_page


def _code(k: Kernel) -> int:
    """An address in the kernel's text."""
    return k.symbol("_stext") + 0x10000


def _linear(k: Kernel, physical: int) -> int:
    return k.linear_offset.value + physical & ALL


def _ram(k: Kernel) -> int:
    """An address of ordinary memory in the direct map."""
    return mapped_from(k, _linear(k, ram(k) + (64 << 20)))


def _text_alias(k: Patched) -> None:
    physical = k.walk(_code(k)).physical
    assert physical is not None
    k.change(_linear(k, physical), add=WRITE_BIT)


def _overlap(k: Patched) -> None:
    k.said["NUMBER(MODULES_VADDR)"] = hex(_ram(k))


def _phys_ram_base(k: Patched) -> None:
    k.variables[symbol(k, "phys_ram_base")] = 1 << 40


def _other_frame(k: Patched) -> None:
    last = k.walk(_ram(k)).steps[-1]
    assert last.value is not None
    k.patches[last.entry_address] = last.value ^ 1 << 25


def _stray(k: Patched) -> None:
    """Nothing is below the fixmap."""
    step = k.walk(riscv_facts(k).fixmap.start - 1).steps[-1]
    same = next(s for s in k.walk(vmalloc_page(k)).steps if s.level == step.level)
    assert step.value == 0 and same.value
    k.patches[step.entry_address] = same.value


def _free_table(k: Patched) -> None:
    step = k.walk(k.place("direct_map").range.end).steps[-1]
    assert step.value == 0 and step.level > 1
    k.patches[step.entry_address] = frame_of(k, "free") << PFN_SHIFT | PRESENT


def _free_page(k: Patched) -> None:
    at = vmalloc_page(k)
    last = k.walk(at).steps[-1]
    assert last.value is not None and last.level == 1
    k.put(at, last.value & (1 << PFN_SHIFT) - 1 | frame_of(k, "free") << PFN_SHIFT)


def _struct_pages(k: Patched) -> int:
    used = k.place("vmemmap").used
    assert used is not None
    return used.start


def _module_text(k: Patched) -> int:
    return next(piece.start for piece in module_memory(k) if piece.kind in ("text", "core"))


BREAKS: Dict[str, Break] = {
    "overlap": _overlap,
    "vmcoreinfo": _phys_ram_base,
    "linear": _other_frame,
    "strays": _stray,
    "wx": lambda k: k.change(_code(k), add=WRITE_BIT),
    "text_ro": _text_alias,
    "rodata_ro": lambda k: k.change(symbol(k, "__start_rodata"), add=WRITE_BIT),
    "data_nx": lambda k: k.change(symbol(k, "init_task"), add=EXEC_BIT),
    "direct_map_nx": lambda k: k.change(_ram(k), add=EXEC_BIT),
    "region_rights": lambda k: k.change(_struct_pages(k), add=EXEC_BIT),
    "module_rights": lambda k: k.change(_module_text(k), add=WRITE_BIT),
    "user_bit": lambda k: k.change(_code(k), add=USER_BIT),
    "contents": lambda k: k.put(vmalloc_page(k), 0),
    "table_pages": _free_table,
    "mapped_pages": _free_page,
}

RISCV64 = Breaks(
    BREAKS,
    {"kaslr", "tables", "vmap_areas", "vmap_strays"},
    {"proc_iomem": "iomem", "proc_modules": "modules", "proc_vmallocinfo": "vmallocinfo"},
    {
        *("kaslr", "tables", "vmcoreinfo", "rodata_ro", "data_nx", "contents"),
        *("vmap_areas", "vmap_strays", "proc_iomem", "proc_modules", "proc_vmallocinfo"),
    },
    frozenset({"proc_kcore"}),
    frozenset(),
)
