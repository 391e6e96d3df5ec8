# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels as they are without CONFIG_KALLSYMS_ALL, made of those that have it."""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import pytest

from kvintro import types
from kvintro.kernel import Kernel, open_kernel
from kvintro.source import Request
from kvintro.source.kallsyms import Kallsyms

#: What scripts/kallsyms.c:text_ranges leaves in the table.
_CODE = (("_stext", "_etext"), ("_sinittext", "_einittext"))


class _Code:
    """The part of a symbol table that has names of code."""

    def __init__(self, whole: Kallsyms) -> None:
        self._table = table = whole._table
        bounds = [(whole.lookup(first), whole.lookup(last)) for first, last in _CODE]
        # What is at the end of a range is left out, too (scripts/kallsyms.c:symbol_valid).
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
    """A core, opened as if its symbol table had code only."""
    find = types._find_symbols
    monkeypatch.setattr(types, "_find_symbols", lambda prog: Kallsyms(_Code(k := find(prog)), k.origin))
    return open_kernel(Request(core=path))
