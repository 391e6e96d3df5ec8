# SPDX-License-Identifier: LGPL-2.1-or-later
"""Types of global variables, which BTF does not have (on most kernels, it only has those of per-CPU ones).

The table in :mod:`kvintro.source._variable_table` is generated from the debuginfo of several kernels by
tools/gen_variable_table.py. For each variable, it has all types found there. The module ``variables`` of an
architecture adds its own (:func:`types_on`). The kernel's BTF and symbol table decide which type applies,
never its version: the kernel must have the type, there must be room for it up to the next symbol, and of
several types the one that fills the room best is chosen.

An entry of the table is a type name as drgn accepts it, or one of these:

=========================  ===================================================================================
``T[]``, ``T[][n]``        an array of as many T (of n) as there is room for
``T[?]``                   an array of unknown length (a string)
``T!``                     an array whose length is the same in all kernels, however much room there is
``T[]~``                   an array of as many T as there is room for, up to the first that is all zeros
``T[ENUMERATOR]``          an array whose length is the value of an enumerator
``T[STRUCT.MEMBER]``       an array as long as that member of struct STRUCT
``typeof(ENUMERATOR)``     the unnamed enumeration that has this enumerator
``struct{a,b,c}``          the unnamed structure that has these members
``T if STRUCT.MEMBER``     T if the kernel's struct STRUCT has this member; ``if not``: if it does not
=========================  ===================================================================================
"""

from __future__ import annotations

import re
from typing import Callable, Iterable, Mapping, Optional, Sequence

import drgn
from drgn import TypeKind

from kvintro.arch import Architecture, part
from kvintro.source._variable_table import TYPES
from kvintro.source.kallsyms import KallsymsSymbol

__all__ = ("TYPES", "VariableTypes", "types_on")

#: A function that only kernels with KASAN have.
KASAN_FUNCTION = "__asan_register_globals"
# Padding between variables: alignment to a cache line, or KASAN's red zone (asan_var_and_redzone_size() of
# GCC).
_MAX_PADDING = 64
_MOST_FULL = 1 << 16  # bytes of an array with unknown padding after it

FindAnonymous = Callable[[Sequence[str]], Optional[drgn.Type]]
"""Names of members -> the structure without a name that has them."""


def types_on(arch: Optional[Architecture]) -> Mapping[str, Sequence[str]]:
    """The table for kernels of an architecture."""
    own: Mapping[str, Sequence[str]] = {}
    if arch is not None:
        try:
            own = part(arch, "variables").TYPES
        except ModuleNotFoundError as error:
            if error.name != f"{arch.package}.variables":
                raise
    return {**TYPES, **own}


class VariableTypes:
    """The types of a kernel's global variables.

    :param prog: program with a type finder.
    :param find_anonymous: finds unnamed structures.
    :param padded: whether variables have a red zone after them (KASAN), so that a variable may be smaller
        than its space.
    :param table: the table to use.
    """

    def __init__(
        self,
        prog: drgn.Program,
        find_anonymous: FindAnonymous,
        *,
        padded: bool = False,
        table: Mapping[str, Sequence[str]] = TYPES,
    ) -> None:
        self._prog = prog
        self._find_anonymous = find_anonymous
        self._padded = padded
        self._table = table

    def find(self, name: str, symbols: Iterable[KallsymsSymbol]) -> Optional[drgn.Object]:
        """A global variable.

        :param name: name of the variable.
        :param symbols: the symbols of that name, the most likely first.
        :return: the variable, at the first symbol with room for one of its types; None if there is none.
        """
        entries = self._table.get(name, ())
        for symbol in symbols:
            best = None
            for entry in entries:
                type_ = self._parse(entry, symbol)
                if type_ is not None and (best is None or _size(type_) > _size(best)):
                    best = type_
            if best is not None:
                return drgn.Object(self._prog, best, address=symbol.address)
        return None

    def _parse(self, entry: str, symbol: KallsymsSymbol) -> Optional[drgn.Type]:
        """The type that an entry of the table stands for, or None if it cannot be this kernel's.

        :param entry: the entry.
        :param symbol: the variable's symbol. Its size is the distance to the next one, 0 if unknown.
        """
        room = symbol.size
        entry, _, condition = entry.partition(" if ")
        if entry.endswith("[]~"):
            return self._without_padding(entry[:-3], symbol)
        fixed = entry.endswith("!")
        try:
            if condition and not self._holds(condition):
                return None
            result = self._type(entry.rstrip("!"), room)
            size = 0 if result is None else _size(result)
        except (LookupError, TypeError, AttributeError):  # unknown; incomplete; or not an array
            return None
        if result is None or not room or size == 0:
            return result
        # An array that leaves much room belongs to another configuration.
        most = room if fixed or result.kind != TypeKind.ARRAY else _MAX_PADDING
        return result if 0 <= room - size <= most else None

    def _without_padding(self, element: str, symbol: KallsymsSymbol) -> Optional[drgn.Type]:
        try:
            inner = self._prog.type(element)
            size = drgn.sizeof(inner)
            data = self._prog.read(symbol.address, min(symbol.size, _MOST_FULL))
        except (LookupError, TypeError, ValueError, drgn.FaultError):
            return None
        count = 0
        while size and any(data[count * size : (count + 1) * size]):
            count += 1
        return self._prog.array_type(inner, count) if count else None

    def _type(self, entry: str, room: int) -> Optional[drgn.Type]:
        prog = self._prog
        match = re.fullmatch(r"typeof\((\w+)\)", entry)
        if match:
            return prog.constant(match[1]).type_
        match = re.fullmatch(r"struct\{(.*)\}", entry)
        if match:
            return self._find_anonymous(match[1].split(","))
        match = re.fullmatch(r"(.*?)\[(\?|[A-Z]\w*|\w+\.\w+|)\](.*)", entry)
        if not match:
            return prog.type(entry)
        element = prog.type(match[1] + match[3])
        if match[2] == "?" or (not match[2] and self._padded):
            return prog.array_type(element)
        if "." in match[2]:
            tag, _, member = match[2].partition(".")
            return prog.array_type(element, prog.type("struct " + tag).member(member).type.length)
        if match[2]:
            return prog.array_type(element, prog.constant(match[2]).value_())
        size = drgn.sizeof(element)
        return prog.array_type(element, room // size) if 0 < size <= room else None

    def _holds(self, condition: str) -> bool:
        wanted = not condition.startswith("not ")
        tag, _, member = condition[0 if wanted else len("not ") :].partition(".")
        return bool(self._prog.type("struct " + tag).has_member(member)) == wanted


def _size(type_: drgn.Type) -> int:
    """Size of a type; 0 for an array of unknown length."""
    return 0 if type_.kind == TypeKind.ARRAY and type_.length is None else drgn.sizeof(type_)
