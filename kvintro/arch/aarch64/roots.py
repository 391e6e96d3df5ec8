# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: roots that only this architecture has, by name.

They are pages before swapper_pg_dir (arch/arm64/kernel/vmlinux.lds.S: idmap_pg_dir, tramp_pg_dir,
reserved_pg_dir), so they are found without symbols, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Mapping, Tuple

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.arch.aarch64.form import Arm64Form
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Root
from kvintro.paging import walk
from kvintro.queries.roots import user_half

_RESERVED_BEFORE = 1
#: Up to 5.19 all tables of idmap_pg_dir are here (c3cee924bd85 "arm64: head: cover entire kernel image in
#: initial ID map"). Without KPTI there is no tramp_pg_dir.
_IDMAP_BEFORE = range(2, 7)
#: IDMAP_VA_BITS
_IDMAP_BITS = 48
#: A function that runs by the identity map, in .idmap.text.
_IDMAP_FUNCTION = "idmap_cpu_replace_ttbr1"

#: A root, and the form of its tables.
Found = Tuple[Root, Arm64Form]


def _tramp(kernel: Kernel) -> Found:
    """tramp_pg_dir, in TTBR1_EL1 while user mode runs."""
    root = user_half(kernel, kernel.kernel_root)
    return replace(root, owner="tramp_pg_dir"), arm64_facts(kernel).form


def _reserved(kernel: Kernel) -> Found:
    """reserved_pg_dir, in TTBR0_EL1 while no process may be read: it maps nothing."""
    form = arm64_facts(kernel).form
    table, named = _place(kernel, "reserved_pg_dir", _RESERVED_BEFORE)
    if not named and any(kernel.read_physical(table, form.table_size(form.levels))):
        raise Unavailable("reserved_pg_dir is not right before swapper_pg_dir")
    return Root(table, "reserved_pg_dir"), form


def _idmap(kernel: Kernel) -> Found:
    """idmap_pg_dir, in TTBR0_EL1 while the kernel changes TTBR1_EL1 or switches the MMU on or off.

    arch/arm64/mm/mmu.c:create_idmap. Since 6.9, it always has 48 bits.

    :raises Unavailable: it is not where kernels have it.
    """
    facts = arm64_facts(kernel)
    form = facts.form
    bits = _IDMAP_BITS if facts.space.from_actual else min(form.address_bits, _IDMAP_BITS)
    form = Arm64Form.of(form.granule, bits, bits, kept=form.kept, types=form.types)
    places = [_place(kernel, "idmap_pg_dir", pages) for pages in _IDMAP_BEFORE]
    function = kernel.find_symbol(_IDMAP_FUNCTION)
    if function is not None:
        physical = function - kernel.image_offset.value & ALL
        for table, _ in places:
            if walk(kernel.read_physical, form, table, physical).physical == physical:
                return Root(table, "idmap_pg_dir"), form
        raise Unavailable(
            f"no page before swapper_pg_dir maps {_IDMAP_FUNCTION}, so idmap_pg_dir was not found"
        )
    table, named = places[0]
    if named:
        return Root(table, "idmap_pg_dir"), form
    raise Unavailable(f"idmap_pg_dir cannot be recognised without the symbol {_IDMAP_FUNCTION}")


def _place(kernel: Kernel, name: str, pages_before: int) -> Tuple[int, bool]:
    """Physical address of a root, and whether the kernel names it."""
    found = kernel.find_symbol(name)
    if found is not None:
        return found - kernel.image_offset.value & ALL, True
    return kernel.root.value - pages_before * kernel.form.page_size, False


ROOTS: Mapping[str, Callable[[Kernel], Found]] = {"tramp": _tramp, "idmap": _idmap, "reserved": _reserved}
