# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels without CONFIG_KALLSYMS_ALL, derived from kernels that have it."""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import pytest

from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.source import Request
from kvintro.source import installed as types
from kvintro.source.kallsyms import Kallsyms

#: Ranges that scripts/kallsyms.c:text_ranges keeps in the table.
_CODE = (("_stext", "_etext"), ("_sinittext", "_einittext"))


class _Code:
    """The part of a symbol table that names code."""

    def __init__(self, whole: Kallsyms) -> None:
        self._table = table = whole._table
        bounds = [(whole.lookup(first), whole.lookup(last)) for first, last in _CODE]
        # Symbols at the end of a range are omitted, too (scripts/kallsyms.c:symbol_valid).
        self._indices: List[int] = [
            index
            for index in range(len(table))
            if any(start and end and start <= table.address(index) < end for start, end in bounds)
        ]
        self._place = {index: place for place, index in enumerate(self._indices)}

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def address(self) -> Callable[[int], int]:
        return lambda index: self._table.address(self._indices[index])

    def name(self, index: int) -> Tuple[str, str]:
        return self._table.name(self._indices[index])

    def find(self, name: str) -> Sequence[int]:
        return [self._place[index] for index in self._table.find(name) if index in self._place]


def open_code_only(path: str, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Open a core as if its symbol table named code only."""
    find = types._find_symbols
    monkeypatch.setattr(types, "_find_symbols", lambda prog: Kallsyms(_Code(k := find(prog)), k.origin))
    return open_kernel(Request(core=path))
