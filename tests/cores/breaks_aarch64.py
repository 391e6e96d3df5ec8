# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes that break each rule of aarch64, and the other rules that they break."""

from __future__ import annotations

from typing import Dict

import pytest

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.arch.aarch64.form import (
    DBM,
    GP,
    PXN,
    PXN_TABLE,
    RDONLY,
    TABLE_RDONLY,
    USER_BIT,
    UXN,
    UXN_TABLE,
    VALID,
)
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Absent
from kvintro.paging import MAPPED
from kvintro.queries.modules import module_memory
from tests.cores.patched import Break, Breaks, Patched, frame_of, mapped_from, ram, symbol, vmalloc_page

_TABLE = 1 << 1


def _writable(k: Patched, virtual: int, root: "int | None" = None) -> None:
    k.change(virtual, take=RDONLY, tables_take=TABLE_RDONLY, root=root)


def _executable(k: Patched, virtual: int, root: "int | None" = None) -> None:
    k.change(virtual, take=PXN | UXN, tables_take=PXN_TABLE | UXN_TABLE, root=root)


def _code(k: Kernel) -> int:
    """An address in the kernel's text."""
    return k.symbol("_stext") + 0x10000


def _physical(k: Kernel, virtual: int) -> int:
    found = k.walk(virtual).physical
    assert found is not None
    return found


def _linear(k: Kernel, physical: int) -> int:
    return k.linear_offset.value + physical & ALL


def _ram(k: Kernel) -> int:
    """An address of ordinary memory in the direct map."""
    return mapped_from(k, _linear(k, ram(k) + (160 << 20)))


def _wx(k: Patched) -> None:
    _writable(k, _code(k))


def _text_alias(k: Patched) -> None:
    _writable(k, _linear(k, _physical(k, _code(k))))


def _rodata(k: Patched) -> None:
    _writable(k, symbol(k, "__start_rodata"))


def _firmware(k: Patched) -> None:
    try:
        root = arm64_facts(k).firmware_root()
    except Unavailable as error:
        pytest.skip(error.what)
    if isinstance(root, Absent):
        pytest.skip(root.reason)
    user = k.form.user
    at = k.new_tree(root.table).ranges(user.start, user.end).select(MAPPED)[0][0]
    k.change(at, add=DBM, take=RDONLY | PXN | UXN, root=root.table)


def _overlap(k: Patched) -> None:
    key = "NUMBER(MODULES_VADDR)"
    if key not in k.source.vmcoreinfo:
        pytest.skip(f"{k.identity.release} does not say {key}")
    k.said[key] = hex(_ram(k))


def _kimage_voffset(k: Patched) -> None:
    k.variables[symbol(k, "kimage_voffset")] = k.image_offset.value + 0x200000 & ALL


def _other_frame(k: Patched) -> None:
    last = k.walk(_ram(k)).steps[-1]
    assert last.value is not None
    k.patches[last.entry_address] = last.value ^ 1 << 25


def _stray(k: Patched) -> None:
    """No region directly follows the region of PCI I/O."""
    step = k.walk(arm64_facts(k).space.pci_io.end + 1).steps[-1]
    same = next(s for s in k.walk(vmalloc_page(k)).steps if s.level == step.level)
    assert step.value == 0 and same.value
    k.patches[step.entry_address] = same.value


def _free_table(k: Patched) -> None:
    step = k.walk(k.place("direct_map").range.end).steps[-1]
    assert step.value == 0 and step.level > 1
    k.patches[step.entry_address] = frame_of(k, "free") << k.page_shift | VALID | _TABLE


def _free_page(k: Patched) -> None:
    at = vmalloc_page(k)
    last = k.walk(at).steps[-1]
    assert last.value is not None and last.level == 1
    flags = last.value & ~(((1 << 48) - 1) & -k.form.page_size)
    k.put(at, flags | frame_of(k, "free") << k.page_shift)


def _module_text(k: Patched) -> int:
    return next(piece.start for piece in module_memory(k) if piece.kind in ("text", "core"))


def _data_alias(k: Patched) -> None:
    data = symbol(k, "__init_end")
    alias = _linear(k, data - k.image_offset.value & ALL)
    if k.walk(alias).physical is not None:
        pytest.skip(f"{k.identity.release} also maps the image's data in the direct map")
    k.change(alias, add=VALID)


def _trampoline(k: Patched) -> None:
    root = k.facts.user_root(k.root.value)
    if root is None:
        pytest.skip("page-table isolation is off")
    half = k.form.kernel
    at = k.new_tree(root).ranges(half.start, half.end).select(MAPPED)[0][0]
    last = k.walk(at, root).steps[-1]
    assert last.value is not None
    k.patches[last.entry_address] = last.value ^ 1 << 27


BREAKS: Dict[str, Break] = {
    "overlap": _overlap,
    "vmcoreinfo": _kimage_voffset,
    "linear": _other_frame,
    "strays": _stray,
    "wx": _wx,
    "efi_wx": _firmware,
    "text_ro": _text_alias,
    "rodata_ro": _rodata,
    "data_alias": _data_alias,
    "data_nx": lambda k: _executable(k, symbol(k, "init_task")),
    "direct_map_nx": lambda k: _executable(k, _ram(k)),
    "region_rights": lambda k: _executable(k, vmalloc_page(k)),
    "module_rights": lambda k: _writable(k, _module_text(k)),
    "module_aliases": lambda k: _writable(k, _linear(k, _physical(k, _module_text(k)))),
    # GCC's kernels do not have BTI; of all text, this guards one entry.
    "bti": lambda k: k.change(_code(k), add=GP),
    "user_bit": lambda k: k.change(_code(k), add=USER_BIT),
    "kpti_trampoline": _trampoline,
    "contents": lambda k: k.put(vmalloc_page(k), 0),
    "table_pages": _free_table,
    "mapped_pages": _free_page,
}

ARM64 = Breaks(
    BREAKS,
    {"kaslr", "kpti", "tables", "vmap_areas", "vmap_strays"},
    {"proc_iomem": "iomem", "proc_modules": "modules", "proc_vmallocinfo": "vmallocinfo"},
    {
        *("kaslr", "kpti", "tables", "vmcoreinfo", "efi_wx", "rodata_ro", "data_nx", "contents"),
        *("vmap_areas", "vmap_strays", "proc_iomem", "proc_modules", "proc_vmallocinfo"),
    },
    frozenset({"proc_kcore"}),
    frozenset({"bti"}),
)
