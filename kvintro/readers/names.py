# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formats addresses of code as the kernel does."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.readers.damage import Damage
from kvintro.readers.lists import list_entries
from kvintro.readers.structures import TROUBLE, number, text_at, text_of

if TYPE_CHECKING:
    import drgn

    from kvintro.kernels import Kernel

_MAX_MODULES = 10_000
_MAX_SYMBOLS = 1 << 18  # per module
_ELF_SYMBOL_SIZE = 24


def module_parts(module: drgn.Object) -> List[Tuple[str, int, int]]:
    """(kind, start, size) of the non-empty pieces of memory of a ``struct module``.

    Since ac3b43283923 "module: replace module_layout with module_memory" (6.4) each kind is allocated
    separately. Before that, the kinds were consecutive parts of two blocks.
    """
    parts: List[Tuple[str, int, int]] = []
    try:
        memory = module.mem
    except AttributeError:
        for prefix, layout in (("", module.core_layout), ("init_", module.init_layout)):
            base, end = number(layout, "base"), number(layout, "size")
            cuts = (
                ("text", number(layout, "text_size")),
                ("rodata", number(layout, "ro_size")),
                ("ro_after_init", number(layout, "ro_after_init_size")),
                ("data", end),
            )
            start = 0
            for kind, limit in cuts:
                cut = min(max(limit, start), end)
                parts.append((prefix + kind, base + start, cut - start))
                start = cut
        return [part for part in parts if part[2] > 0]
    # enum mod_mem_type; its values have not changed.
    kinds = ("text", "data", "rodata", "ro_after_init", "init_text", "init_data", "init_rodata")
    parts = [(kind, number(piece, "base"), number(piece, "size")) for kind, piece in zip(kinds, memory)]
    return [part for part in parts if part[1] and part[2] > 0]


class Names:
    """Names of code.

    Modules are searched only for addresses outside the image.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: Dict[int, str] = {}
        self._modules: Optional[List[Tuple[int, int, str, drgn.Object]]] = None
        self._tables: Dict[Tuple[int, int], List[Tuple[int, str]]] = {}
        try:
            self._image = range(kernel.text.value, kernel.symbol("_end"))
        except Unavailable:
            self._image = range(0)

    def code(self, address: int) -> str:
        """Format an address like printk's ``%pS``: ``kernel_clone+0xc2/0x430``, ``probe+0x1f/0xa0 [virtio]``.

        Mirrors kernel/kallsyms.c:__sprint_symbol. Without a symbol the result is ``0x`` and the digits.
        """
        text = self._known.get(address)
        if text is None:
            text = self._known[address] = self._code(address)
        return text

    def _code(self, address: int) -> str:
        if address not in self._image:
            found = self._in_module(address)
            if found is not None:
                return found
        try:
            symbol = self._kernel.prog.symbol(address)
        except LookupError:
            return f"0x{address:x}"
        return f"{symbol.name}+{address - symbol.address:#x}/{symbol.size:#x}"

    def _in_module(self, address: int) -> Optional[str]:
        if self._modules is None:
            self._modules = list(self._load())
        for start, end, name, module in self._modules:
            if start <= address < end:
                return self._symbol_of(module, name, start, end, address)
        return None

    def _load(self) -> List[Tuple[int, int, str, drgn.Object]]:
        out: List[Tuple[int, int, str, drgn.Object]] = []
        try:
            head = self._kernel.symbol("modules")
            entries = list_entries(
                self._kernel, head, "struct module", "list", Damage(), "modules", limit=_MAX_MODULES
            )
            for _, module in entries:
                name = text_of(module.name)
                out += [(start, start + size, name, module) for _, start, size in module_parts(module)]
        except TROUBLE:
            pass  # reports are still correct without these names; lists of modules report the damage
        return out

    def _symbol_of(self, module: drgn.Object, name: str, start: int, end: int, address: int) -> str:
        """kernel/module/kallsyms.c:find_kallsyms_symbol. A symbol extends to the next one."""
        table = self._tables.get((start, end))
        if table is None:
            table = self._tables[start, end] = self._table(module, start, end)
        index = bisect_right(table, (address, "\U0010ffff")) - 1
        if index < 0:
            return f"0x{address:x} [{name}]"
        low, symbol = table[index]
        high = table[index + 1][0] if index + 1 < len(table) else end
        return f"{symbol}+{address - low:#x}/{high - low:#x} [{name}]"

    def _table(self, module: drgn.Object, start: int, end: int) -> List[Tuple[int, str]]:
        found: Dict[int, str] = {}
        try:
            kallsyms = module.kallsyms.read_()[0].read_()
            count, strings = number(kallsyms, "num_symtab"), number(kallsyms, "strtab")
            if not 0 < count <= _MAX_SYMBOLS:
                return []
            data = self._kernel.read(number(kallsyms, "symtab"), count * _ELF_SYMBOL_SIZE)
            for at in range(_ELF_SYMBOL_SIZE, len(data), _ELF_SYMBOL_SIZE):
                value = int.from_bytes(data[at + 8 : at + 16], "little")
                section = int.from_bytes(data[at + 6 : at + 8], "little")
                if not section or not start <= value < end or value in found:
                    continue
                name = self._string(strings + int.from_bytes(data[at : at + 4], "little"))
                if name and not name.startswith((".L", "L0")) and not name.startswith("$"):
                    found[value] = name
        except TROUBLE:
            pass
        return sorted(found.items())

    def _string(self, address: int) -> str:

        return text_at(self._kernel, address, 512)
