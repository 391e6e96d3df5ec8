# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the symbols (struct mod_kallsyms) and types (their own BTF) of loaded modules.

Nothing is read before a name or an address is looked up that the kernel image does not have. All data comes
from lists in untrusted memory: every walk is bounded, and data that cannot be read is skipped and reported in
:attr:`LoadedModules.problems`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Iterator, List, NamedTuple, Optional, Tuple

import drgn

from kvintro.arch.form import SMALLEST_PAGE
from kvintro.errors import KvintroError
from kvintro.source.btf import MAX_BTF_SIZE, Btf, BtfError, BtfTypes
from kvintro.source.kallsyms import READ_ERRORS, KallsymsSymbol

__all__ = ("LoadedModules", "Module")

_MAX_MODULES = 10_000
_MAX_SYMBOLS = 1 << 18  # of one module; the largest, amdgpu, has 40,000
_MAX_NAME = 1024
_MAX_OVERLAP = 16  # aliases or symbols without a size between an address and the symbol that contains it
_MAX_BYTES = 512 << 20  # of all modules' symbols and types together
_PAGE = SMALLEST_PAGE
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_STT_SECTION, _STT_FILE = 3, 4
#: Names that assemblers give to places in code, not to functions (include/linux/module_symbol.h).
_MARKS = (".L", "L0", "$")
# Errors from reading structures whose types and contents may be arbitrary.
_TROUBLE = (LookupError, AttributeError, TypeError, drgn.ObjectAbsentError, KvintroError, *READ_ERRORS)


class Module:
    """A loaded module and its symbols."""

    def __init__(self, name: str, ranges: List[Tuple[int, int]], symtab: bytes, strtab: bytes) -> None:
        self.name = name
        self.ranges = ranges
        """Where it lies: (start, end), the end exclusive."""
        self._symtab = symtab
        self._strtab = strtab
        self._symbols: Optional[List[KallsymsSymbol]] = None
        self._sorted: List[KallsymsSymbol] = []
        self._addresses: Optional[List[int]] = None

    def __contains__(self, address: int) -> bool:
        return any(start <= address < end for start, end in self.ranges)

    def symbols(self) -> List[KallsymsSymbol]:
        """All its symbols."""
        if self._symbols is None:
            self._symbols = []
            for name, info, _, section, value, size in _SYMBOL.iter_unpack(self._symtab):
                end = self._strtab.find(b"\0", name, name + _MAX_NAME)
                kind = info & 0xF
                if end > name and section and kind not in (_STT_SECTION, _STT_FILE):
                    text = self._strtab[name:end].decode("ascii", "backslashreplace")
                    self._symbols.append(KallsymsSymbol(text, value, size, _letter(info >> 4, kind)))
        return self._symbols

    def lookup_all(self, name: str) -> List[KallsymsSymbol]:
        """Its symbols with a name."""
        if b"\0" + name.encode("ascii", "backslashreplace") + b"\0" not in self._strtab:
            return []
        return [symbol for symbol in self.symbols() if symbol.name == name]

    def by_address(self, address: int) -> Optional[KallsymsSymbol]:
        """The symbol that an address belongs to; None if it belongs to none."""
        if self._addresses is None:
            named = (symbol for symbol in self.symbols() if not symbol.name.startswith(_MARKS))
            self._sorted = sorted(named, key=lambda symbol: symbol.address)
            self._addresses = [symbol.address for symbol in self._sorted]
        index = bisect_right(self._addresses, address)
        for symbol in self._sorted[max(index - _MAX_OVERLAP, 0) : index][::-1]:
            if symbol.address <= address < symbol.address + max(symbol.size, 1):
                return symbol
        return None


def _letter(binding: int, kind: int) -> str:
    """nm(1)'s letter for the binding and type of an ELF symbol."""
    if binding == 2:
        return "V" if kind == 1 else "W"
    letter = {1: "d", 2: "t"}.get(kind, "n")
    return letter.upper() if binding == 1 else letter


class _Blob(NamedTuple):
    name: str
    data: bytes


class LoadedModules:
    """The loaded modules of a kernel.

    :param prog: program with the types and symbols of the kernel image.
    :param types: the types of the kernel image.
    :param sys_btf: directory with a BTF file for each module, if this is the running kernel.
    """

    def __init__(self, prog: drgn.Program, types: BtfTypes, sys_btf: Optional[str] = None) -> None:
        self._prog = prog
        self._types = types
        self._sys_btf = sys_btf
        self._busy = False
        self._budget = _MAX_BYTES
        self._modules: Optional[List[Module]] = None
        self._blobs: Optional[List[_Blob]] = None
        self._parsed: List[BtfTypes] = []
        self.problems: List[str] = []
        """What could not be read."""

    def modules(self) -> List[Module]:
        """All loaded modules."""
        if self._modules is None:
            if self._busy:  # reading them needs types, and looking up types calls this again
                return []
            self._busy = True
            try:
                self._modules = [
                    module
                    for entry in self._list("modules", "struct module")
                    for module in [self._module(entry)]
                    if module is not None
                ]
            finally:
                self._busy = False
        return self._modules

    def lookup_all(self, name: str) -> List[KallsymsSymbol]:
        """All symbols with a name, in all modules."""
        return [symbol for module in self.modules() for symbol in module.lookup_all(name)]

    def by_address(self, address: int) -> Optional[KallsymsSymbol]:
        """The symbol that an address belongs to; None if it belongs to none."""
        for module in self.modules():
            if address in module:
                return module.by_address(address)
        return None

    def types(self) -> Iterator[BtfTypes]:
        """The types of each module with its own BTF, made as the iteration proceeds."""
        if self._blobs is None:
            if self._busy:
                return
            self._busy = True
            try:
                self._blobs = list(self._read_blobs())
            finally:
                self._busy = False
        yield from self._parsed
        while self._blobs:
            name, data = self._blobs.pop(0)
            try:
                types = BtfTypes(self._prog, Btf(data, self._types.btf, name=name), self._types)
            except BtfError as e:
                self.problems.append(e.what)
            else:
                self._parsed.append(types)
                yield types

    def _list(self, head_name: str, type_name: str) -> Iterator[drgn.Object]:
        """The entries of a list linked by their member ``list``; their number is bounded."""
        try:
            head = self._prog[head_name]
            entry_type = self._prog.type(type_name)
            end = head.address_
            node = head.next.read_()
        except _TROUBLE as e:
            self.problems.append(f"list of {type_name}: {e}")
            return
        seen = {end}
        try:
            while node.value_() not in seen:
                seen.add(node.value_())
                if len(seen) > _MAX_MODULES:
                    self.problems.append(f"list of {type_name}: it does not end")
                    return
                entry = drgn.container_of(node, entry_type, "list")
                yield entry
                node = entry.list.next.read_()
        except _TROUBLE as e:
            self.problems.append(f"list of {type_name}: {e}")
            return
        if node.value_() != end:
            self.problems.append(f"list of {type_name}: it contains a cycle")

    def _module(self, module: drgn.Object) -> Optional[Module]:
        try:
            name = module.name.string_().decode("ascii", "backslashreplace")
        except _TROUBLE as e:
            self.problems.append(f"a module: {e}")
            return None
        symtab = strtab = b""
        ranges = []
        try:
            ranges = list(_ranges(module))
            tables = module.kallsyms
            count = tables.num_symtab.value_()
            if not 0 <= count <= _MAX_SYMBOLS:
                raise ValueError(f"{count} symbols")
            symtab = self._read(tables.symtab.value_(), count * _SYMBOL.size)
            last = max((name for name, *_ in _SYMBOL.iter_unpack(symtab)), default=0)
            if last > MAX_BTF_SIZE:
                raise ValueError("a name far outside of the string table")
            strtab = self._read_strings(tables.strtab.value_(), last)
        except _TROUBLE as e:
            self.problems.append(f"symbols of module {name}: {e}")
        return Module(name, ranges, symtab, strtab)

    def _read(self, address: int, size: int) -> bytes:
        self._budget -= size
        if self._budget < 0:
            raise ValueError("all modules together are too large")
        data: bytes = self._prog.read(address, size)
        return data

    def _read_strings(self, address: int, last: int) -> bytes:
        """Read a string table up to the end of its last string.

        :param last: offset of the last string.
        """
        end = address + last + 1
        while True:
            end = (end // _PAGE + 1) * _PAGE
            data = self._read(address, end - address)
            if b"\0" in data[last:] or len(data) > last + _MAX_NAME:
                return data

    def _read_blobs(self) -> Iterator[_Blob]:
        """The BTF of each module (struct btf_module in kernel/bpf/btf.c; module.btf_data is NULL by now)."""
        for entry in self._list("btf_modules", "struct btf_module"):
            name = "?"
            try:
                btf = entry.btf
                name = btf.name.string_().decode("ascii", "backslashreplace")
                data = self._read_sys(name)
                if data is None:
                    first, strings = btf.start_id.value_(), btf.start_str_off.value_()
                    base = self._types.btf
                    if (first, strings) != (base.end_id, base.end_string):
                        raise ValueError("it extends a BTF that is not the kernel's")
                    size = btf.data_size.value_()
                    if size > MAX_BTF_SIZE:
                        raise ValueError(f"it cannot have {size} bytes")
                    data = self._read(btf.data.value_(), size)
            except _TROUBLE as e:
                self.problems.append(f"BTF of module {name}: {e}")
                continue
            yield _Blob(name, data)

    def _read_sys(self, name: str) -> Optional[bytes]:
        if self._sys_btf is None or "/" in name:
            return None
        try:
            with open(f"{self._sys_btf}/{name}", "rb") as file:
                return file.read(MAX_BTF_SIZE + 1)
        except OSError:
            return None


def _ranges(module: drgn.Object) -> Iterator[Tuple[int, int]]:
    try:
        parts = list(module.mem)
    except AttributeError:
        # Before ac3b43283923 "module: replace module_layout with module_memory" (6.4)
        parts = [module.core_layout, module.init_layout]
    for part in parts:
        start, size = part.base.value_(), part.size.value_()
        if size:
            yield start, start + size
