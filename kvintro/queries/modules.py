# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory of loaded modules, one piece at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Iterator, List, Tuple

import drgn

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.readers.structures import TROUBLE, struct_at
from kvintro.regions.modules import section_addresses

_MAX_MODULES = 1 << 14
#: enum mod_mem_type, by number.
MEMORY_TYPES = ("text", "data", "rodata", "ro_after_init", "init_text", "init_data", "init_rodata")


@dataclass(frozen=True, order=True)
class ModuleMemory:
    """One piece of one module.

    :ivar end: last address.
    :ivar kind: one of :data:`MEMORY_TYPES`; before 6.4, when a piece had parts with different rights,
        ``core`` or ``init``.
    :ivar descriptor: address of the module's ``struct module``.
    """

    start: int
    end: int
    module: str
    kind: str
    descriptor: int = 0


def module_memory(kernel: Kernel) -> List[ModuleMemory]:
    """All pieces of all modules, ascending.

    :raises Unavailable: the source does not contain it.
    """
    from drgn.helpers.linux.module import for_each_module

    if kernel.source.types == "none":
        raise Unavailable("modules cannot be listed without types")
    found: List[ModuleMemory] = []
    try:
        if not kernel.has_symbol("__module_address", code=True):
            return found  # CONFIG_MODULES is off
        kernel.symbol("modules")
        for number, module in enumerate(for_each_module(kernel.prog)):
            if number >= _MAX_MODULES:
                raise Unavailable("the list of modules does not end")
            name = os.fsdecode(module.name.string_())
            found += [
                ModuleMemory(start, start + size - 1, name, kind, module.value_())
                for start, size, kind in _pieces(module)
                if 0 < size < 1 << 32
            ]
    except (LookupError, AttributeError, TypeError, ValueError, drgn.FaultError) as error:
        raise Unavailable(f"modules cannot be listed: {error}") from error
    return sorted(found)


def module_sections(kernel: Kernel, descriptor: int) -> List[Tuple[int, str]]:
    """(first address, name) of a module's sections, ascending.

    :param descriptor: address of the module's ``struct module``.
    :raises Unavailable: the source does not contain it.
    """
    try:
        module = struct_at(kernel, "struct module", descriptor)
        return sorted((address, name) for name, address in section_addresses(kernel, module))
    except TROUBLE as error:
        raise Unavailable(f"sections of a module cannot be read: {error}") from error


def _pieces(module: drgn.Object) -> Iterator[Tuple[int, int, str]]:
    """(start, size, kind) of each piece of a module."""
    try:
        memory = module.mem
    except AttributeError:
        # Before 6.4 there were two pieces, whose parts had different rights.
        for layout, kind in ((module.core_layout, "core"), (module.init_layout, "init")):
            yield layout.base.value_(), layout.size.value_(), kind
        return
    for number, piece in enumerate(memory):
        kind = MEMORY_TYPES[number] if number < len(MEMORY_TYPES) else f"memory {number}"
        yield piece.base.value_(), piece.size.value_(), kind
