# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes whose page tables share each other's tables, which no kernel does."""

from __future__ import annotations

import struct

import pytest

from kvintro.arch.x86_64.facts import x86_form
from kvintro.kernels import Kernel
from kvintro.readers.damage import Damage
from kvintro.readers.processes import each_mm, foreign_tables, mm_of, root_of
from tests.conftest import Core
from tests.cores.showing import fresh, overlay

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")


def _roots(kernel: Kernel) -> "list[int]":
    return [root_of(kernel, mm_of(kernel, process)) for process in each_mm(kernel, Damage())]


def test_no_process_has_a_table_of_another(core: Core, kernel: Kernel) -> None:
    for root in _roots(kernel):
        assert foreign_tables(kernel, root) == set()
        assert foreign_tables(kernel, root) == set()  # also when it is called again


def test_a_table_belongs_to_the_process_met_first(core: Core, kernel: Kernel) -> None:
    first, second = _roots(kernel)[:2]
    own = [v for v in struct.unpack("<256Q", kernel.read_physical(first, 2048)) if v & 1]
    if not own:
        pytest.skip("the first process maps nothing")
    spoiled = fresh(core)
    overlay(spoiled, second, own[0], physical=True)
    table = own[0] & x86_form(kernel).pfn_mask
    assert foreign_tables(spoiled, first) == set()
    assert foreign_tables(spoiled, second) == {table}
