# SPDX-License-Identifier: LGPL-2.1-or-later
"""Types of global variables, which BTF does not have (it has the per-CPU ones only, on most kernels).

The table in :mod:`kvintro.source._variable_table` is generated from the debuginfo of several kernels by
tools/gen_variable_table.py. It has, for each variable, the types that it has been seen with. Which of them a
kernel has is decided by what its BTF and its symbol table say, never by its version.

An entry of the table is what drgn takes for the name of a type, or one of these:

=========================  ===================================================================================
``T[]``                    an array of as many T as there is room for
``T[?]``                   an array of unknown length (a string)
``T[ENUMERATOR]``          an array whose length is an enumerator
``typeof(ENUMERATOR)``     the enumeration that has it, for one without a name
``struct{a,b,c}``          the structure without a name that has these members
``T if STRUCT.MEMBER``     T in a kernel whose struct STRUCT has this member; ``if not``: has not
=========================  ===================================================================================
"""

from __future__ import annotations

import re
from typing import Callable, Iterable, Mapping, Optional, Sequence

import drgn
from drgn import TypeKind

from kvintro.source._variable_table import TYPES
from kvintro.source.kallsyms import KallsymsSymbol

__all__ = ("TYPES", "find_variable", "parse")

_MAX_PADDING = 64  # between two variables; arrays are not aligned to more than a cache line

FindAnonymous = Callable[[Sequence[str]], Optional[drgn.Type]]
"""Names of members -> the structure without a name that has them."""


def find_variable(
    prog: drgn.Program,
    name: str,
    symbols: Iterable[KallsymsSymbol],
    find_anonymous: FindAnonymous,
    table: Mapping[str, Sequence[str]] = TYPES,
) -> Optional[drgn.Object]:
    """A global variable of a type from the table.

    :param prog: program with a type finder.
    :param name: name of the variable.
    :param symbols: the symbols of that name, the likeliest first.
    :param find_anonymous: finds structures without a name.
    :param table: the table to look into.
    :return: the variable, at the first symbol that has the room for one of its types, and of the type that
        fills that room best; None if there is none.
    """
    for symbol in symbols:
        best = None
        for entry in table.get(name, ()):
            type_ = parse(prog, entry, symbol.size, find_anonymous)
            if type_ is not None and (best is None or _size(type_) > _size(best)):
                best = type_
        if best is not None:
            return drgn.Object(prog, best, address=symbol.address)
    return None


def _size(type_: drgn.Type) -> int:
    return 0 if type_.kind == TypeKind.ARRAY and type_.length is None else drgn.sizeof(type_)


def parse(prog: drgn.Program, entry: str, room: int, find_anonymous: FindAnonymous) -> Optional[drgn.Type]:
    """The type that an entry of the table stands for, or None if it cannot be this kernel's.

    :param room: room for the variable: distance from its symbol to the next; 0 if that is unknown.
    """
    entry, _, condition = entry.partition(" if ")
    try:
        if condition and not _holds(prog, condition):
            return None
        result = _parse(prog, entry, room, find_anonymous)
        if result is None or (result.kind == TypeKind.ARRAY and result.length is None):
            return result
        size = drgn.sizeof(result)
    except (LookupError, TypeError):  # not known; known, but incomplete
        return None
    if room and size > room:
        return None
    if room and result.kind == TypeKind.ARRAY and room - size >= _MAX_PADDING:
        return None  # the array of another configuration
    return result


def _parse(prog: drgn.Program, entry: str, room: int, find_anonymous: FindAnonymous) -> Optional[drgn.Type]:
    match = re.fullmatch(r"typeof\((\w+)\)", entry)
    if match:
        return prog.constant(match[1]).type_
    match = re.fullmatch(r"struct\{(.*)\}", entry)
    if match:
        return find_anonymous(match[1].split(","))
    match = re.fullmatch(r"(.*)\[(\?|[A-Z]\w*|)\]", entry)
    if not match:
        return prog.type(entry)
    element = prog.type(match[1])
    if match[2] == "?":
        return prog.array_type(element)
    if match[2]:
        return prog.array_type(element, prog.constant(match[2]).value_())
    size = drgn.sizeof(element)
    if not size or room < size:
        return None
    return prog.array_type(element, room // size)


def _holds(prog: drgn.Program, condition: str) -> bool:
    wanted = not condition.startswith("not ")
    tag, _, member = condition[0 if wanted else len("not ") :].partition(".")
    return bool(prog.type("struct " + tag).has_member(member)) == wanted
