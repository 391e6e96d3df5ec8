# SPDX-License-Identifier: LGPL-2.1-or-later
"""Adds the kernel's own symbols and types to a drgn program: :mod:`kvintro.types`"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import drgn
from drgn import FindObjectFlags, ProgramFlags

from kvintro.arch import Architecture, by_drgn_name
from kvintro.errors import KvintroError, WrongArchitecture
from kvintro.source import scan
from kvintro.source.btf import MAX_BTF_SIZE, STRUCT, Btf, BtfError, BtfTypes
from kvintro.source.kallsyms import (
    READ_ERRORS,
    Kallsyms,
    KallsymsError,
    KallsymsSymbol,
    vmcoreinfo_symbols,
)
from kvintro.source.loaded_modules import LoadedModules
from kvintro.source.note import text_of
from kvintro.source.unnamed import Unnamed
from kvintro.source.variables import KASAN_FUNCTION, VariableTypes, types_on

__all__ = ("Installed", "Missing", "install")

_KEY = "kvintro.types"  # in Program.config
_SYS_BTF = "/sys/kernel/btf"
# Functions that libdrgn looks up only to see whether they exist (for vmemmap, with CONFIG_SPARSEMEM_VMEMMAP).
# BTF of pahole before 1.21 has only functions that can be traced, so none in .init and .meminit.
_ASKED_TO_BE = ("vmemmap_populate",)
_NO_BTF = "give the kernel's BTF with --btf FILE, or its vmlinux with -s"


class Missing(NamedTuple):
    """Why something is missing, and a remedy."""

    reason: str
    remedy: str = ""

    @classmethod
    def of(cls, error: KvintroError) -> Missing:
        return cls(error.what, error.remedy)


@dataclass
class Installed:
    """What :func:`install` found, and where. Modules are read once, on first use."""

    symbols: str = ""
    """Where the symbols came from; empty if there are none."""
    types: str = ""
    """Where the types came from; empty if there are none."""
    symbols_missing: Optional[Missing] = None
    types_missing: Optional[Missing] = None
    kallsyms: Optional[Kallsyms] = field(default=None, repr=False)
    btf: Optional[BtfTypes] = field(default=None, repr=False)
    modules: Optional[LoadedModules] = field(default=None, repr=False)
    unnamed: Optional[Unnamed] = field(default=None, repr=False)

    @property
    def symbol_count(self) -> int:
        """Number of symbols of the kernel image."""
        return len(self.kallsyms) if self.kallsyms else 0

    @property
    def type_count(self) -> int:
        """Number of types of the kernel image."""
        return len(self.btf.btf) if self.btf else 0

    @property
    def notes(self) -> List[str]:
        """Remarks for the user on problems found so far."""
        notes = []
        if self.btf:
            notes += [
                f"{name} has {count} definitions; the most used one is chosen"
                for name, count in sorted(self.btf.ambiguous.items())
            ]
        if self.modules:
            notes += self.modules.problems
        return notes


def install(
    prog: drgn.Program,
    *,
    btf: Optional[bytes] = None,
    types: bool = True,
    modules: bool = True,
) -> Installed:
    """Add symbols from kallsyms and types from BTF to a program of a Linux kernel.

    :param prog: program with its memory set; without debuginfo.
    :param btf: the kernel's BTF, if it should not be read from the kernel itself.
    :param types: whether to add types.
    :param modules: whether to search loaded modules for names that the kernel image does not have.
    :return: a record of symbols and types found. If something is missing, it has the reason; nothing is
        raised. A second call for the same program returns the same record.
    """
    done = prog.config.get(_KEY)
    if isinstance(done, Installed):
        return done
    done = prog.config[_KEY] = Installed()
    try:
        done.kallsyms = _find_symbols(prog)
        done.symbols = done.kallsyms.origin
    except KallsymsError as e:
        done.symbols_missing = Missing.of(e)
    try:
        if not types:
            raise BtfError("--types none was given", "run it without --types none")
        data, origin = (btf, "BTF (file)") if btf is not None else _find_btf(prog, done.kallsyms)
        done.btf = BtfTypes(prog, Btf(data))
        done.types = origin
    except BtfError as e:
        done.types_missing = Missing(e.what, e.remedy or _NO_BTF)
    if modules and done.btf and done.kallsyms:
        done.modules = LoadedModules(prog, done.btf, _SYS_BTF if _is_local(prog) else None)
    if done.kallsyms and done.kallsyms.code_only:
        done.unnamed = Unnamed(prog)
    finders = _Finders(done)
    if done.kallsyms:
        prog.register_symbol_finder("kallsyms", finders.find_symbols, enable_index=-1)
        start, end = done.kallsyms.lookup("_text"), done.kallsyms.lookup("_end")
        if start and end and start < end:
            # drgn needs this to know for which addresses to use the kernel's own ORC tables.
            prog.main_module("kernel", create=True).address_range = (start, end)
    if done.btf:
        prog.register_type_finder("btf", finders.find_type, enable_index=-1)
        prog.register_object_finder("btf", finders.find_object, enable_index=-1)
    if done.unnamed:
        done.unnamed.tell_direct_map()
    return done


class _Finders:
    """The finders that drgn calls: first the kernel image, then its modules."""

    def __init__(self, installed: Installed) -> None:
        self._kallsyms = installed.kallsyms
        self._btf = installed.btf
        self._modules = installed.modules
        self._unnamed = installed.unnamed
        self._variables: Optional[VariableTypes] = None
        if self._btf and self._kallsyms:
            self._variables = VariableTypes(
                self._btf.prog,
                self._btf.find_anonymous,
                padded=bool(self._kallsyms.lookup(KASAN_FUNCTION)),
                table=types_on(arch_of(self._btf.prog)),
            )
        self._type_misses: set[Tuple[drgn.TypeKind, str]] = set()
        self._objects: Dict[Tuple[str, FindObjectFlags], Optional[drgn.Object]] = {}

    def _all_types(self) -> Iterator[BtfTypes]:
        if self._btf:
            yield self._btf
        if self._modules:
            yield from self._modules.types()

    def find_type(
        self, prog: drgn.Program, kinds: drgn.TypeKindSet, name: str, filename: Optional[str]
    ) -> Optional[drgn.Type]:
        """BTF does not record the file that declares a type, so a file name is ignored."""
        for kind in kinds:
            if (kind, name) in self._type_misses:
                continue
            for types in self._all_types():
                found = types.find(kind, name)
                if found is not None:
                    return found
            self._type_misses.add((kind, name))
        return None

    def find_symbols(
        self, prog: drgn.Program, name: Optional[str], address: Optional[int], one: bool
    ) -> List[drgn.Symbol]:
        assert self._kallsyms
        found = self._kallsyms.find(prog, name, address, one)
        if self._modules and not (one and found):
            found += [symbol.to_drgn() for symbol in self._module_symbols(name, address)]
        if self._unnamed and name is not None and address is None and not found:
            symbol = self._unnamed.find(name)
            found = [] if symbol is None else [symbol.to_drgn()]
        return found[:1] if one else found

    def _module_symbols(self, name: Optional[str], address: Optional[int]) -> List[KallsymsSymbol]:
        assert self._modules
        if name is not None:
            symbols = self._modules.lookup_all(name)
            if address is not None:
                symbols = [s for s in symbols if s.address <= address < s.address + max(s.size, 1)]
            return symbols
        if address is not None:
            symbol = self._modules.by_address(address)
            return [] if symbol is None else [symbol]
        return [symbol for module in self._modules.modules() for symbol in module.symbols()]

    def _symbols(self, name: str) -> List[KallsymsSymbol]:
        symbols = self._kallsyms.lookup_all(name) if self._kallsyms else []
        if not symbols and self._modules:
            symbols = self._modules.lookup_all(name)
        if not symbols and self._unnamed:
            found = self._unnamed.find(name)
            symbols = [] if found is None else [found]
        return symbols

    def find_object(
        self, prog: drgn.Program, name: str, flags: FindObjectFlags, filename: Optional[str]
    ) -> Optional[drgn.Object]:
        """As with types, a file name is ignored."""
        key = (name, flags)
        if key not in self._objects:
            self._objects[key] = self._find_object(prog, name, flags)
        return self._objects[key]

    def _find_object(self, prog: drgn.Program, name: str, flags: FindObjectFlags) -> Optional[drgn.Object]:
        symbols = self._symbols(name)
        if flags & FindObjectFlags.VARIABLE and self._variables:
            found = self._variables.find(name, symbols)
            if found is not None:
                return found
        for types in self._all_types():
            if symbols and flags & FindObjectFlags.VARIABLE:
                type_ = types.find_variable(name)
                if type_ is not None:
                    return drgn.Object(prog, type_, address=symbols[0].address)
            if symbols and flags & FindObjectFlags.FUNCTION:
                type_ = types.find_function(name)
                if type_ is None and name in _ASKED_TO_BE:
                    type_ = prog.function_type(prog.void_type(), (), True)
                if type_ is not None:
                    return drgn.Object(prog, type_, address=symbols[0].address)
            if flags & FindObjectFlags.CONSTANT:
                found = types.find_constant(name)
                if found is not None:
                    return found
        if self._unnamed and flags & FindObjectFlags.VARIABLE:
            return self._unnamed.value(name)
        return None


def arch_of(prog: drgn.Program) -> Optional[Architecture]:
    """The architecture of a program; None if kvintro does not read its kernels."""
    platform = prog.platform
    try:
        return None if platform is None else by_drgn_name(platform.arch.name)
    except WrongArchitecture:
        return None


def _is_local(prog: drgn.Program) -> bool:
    local = ProgramFlags.IS_LIVE | ProgramFlags.IS_LOCAL
    return bool(prog.flags & local == local)


def _find_symbols(prog: drgn.Program) -> Kallsyms:
    error = KallsymsError("VMCOREINFO does not contain symbols", "give another with --vmcoreinfo FILE")
    try:
        symbols = vmcoreinfo_symbols(text_of(prog))
    except LookupError:
        error = KallsymsError("there is no VMCOREINFO note", "give it with --vmcoreinfo FILE")
        symbols = {}
    try:
        if symbols:
            return Kallsyms.from_memory(prog.read, symbols)
    except KallsymsError as e:
        error = e
    if _is_local(prog):
        # An old kernel. Memory is not subject to kptr_restrict, so this comes second.
        return Kallsyms.from_proc()
    if "kallsyms_names" in symbols or not symbols:
        raise error
    return scan.find_kallsyms(prog.read, symbols)


def _find_btf(prog: drgn.Program, kallsyms: Optional[Kallsyms]) -> Tuple[bytes, str]:
    if _is_local(prog):
        path = f"{_SYS_BTF}/vmlinux"
        try:
            with open(path, "rb") as file:
                return file.read(MAX_BTF_SIZE + 1), f"BTF ({path})"
        except OSError:
            pass
    start = end = None
    if kallsyms is not None:
        start, end = kallsyms.lookup("__start_BTF"), kallsyms.lookup("__stop_BTF")
    if start is None or end is None:
        if kallsyms is None or kallsyms.code_only:
            return _scan_for_btf(prog), "BTF (found by scanning)"
        raise BtfError("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF is off)")
    if not 0 < end - start <= MAX_BTF_SIZE:
        raise BtfError(f"invalid size of the kernel's BTF: {end - start} bytes")
    try:
        return prog.read(start, end - start), "BTF"
    except READ_ERRORS as e:
        raise BtfError(f"the kernel's BTF is not in the source: {e}") from e


def _scan_for_btf(prog: drgn.Program) -> bytes:
    """The kernel's BTF if no symbol points to it: the one that agrees with the sizes in VMCOREINFO."""
    try:
        vmcoreinfo = text_of(prog)
        start, end = scan.image_of(vmcoreinfo_symbols(vmcoreinfo))
    except (LookupError, KallsymsError):
        raise BtfError("without symbols the kernel's BTF cannot be found") from None
    sizes = re.findall(r"^SIZE\((\w+)\)=(\d{1,9})$", vmcoreinfo, re.M)
    for data in scan.find_btf(prog.read, start, end):
        try:
            btf = Btf(data)
            known = [(btf.size_of(i), int(size)) for name, size in sizes for i in btf.find(STRUCT, name)]
        except BtfError:
            continue
        if known and all(found == said for found, said in known):
            return data
    missing = end - start - sum(len(data) for _, data in scan.pieces(prog.read, start, end))
    where = f", or it is in {missing >> 10} KB that are not in this source" if missing else "?"
    raise BtfError(f"no BTF was found in the kernel's image (CONFIG_DEBUG_INFO_BTF is off{where})")
