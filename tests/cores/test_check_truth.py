# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of the page tables: kept where the kernel itself says so, found broken where a test breaks them."""

from __future__ import annotations

import struct
from typing import Dict, Optional

import pytest

from kvintro.arch.x86_64 import NX, PTI_USER_ROOT_BIT, RW, USER
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.paging import walk
from kvintro.reports.check import check
from tests.conftest import Core


class Patched(Kernel):
    """A kernel with some page-table entries changed."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.source)
        self.patches: Dict[int, int] = {}

    def read_physical(self, address: int, size: int) -> bytes:
        data = bytearray(super().read_physical(address, size))
        for at, value in self.patches.items():
            if address <= at < address + size:
                struct.pack_into("<Q", data, at - address, value)
        return bytes(data)

    def change(self, virtual: int, *, add: int = 0, take: int = 0, root: Optional[int] = None) -> None:
        """Change the last entry on the way to an address; rights are added on the whole way."""
        steps = walk(
            self.read_physical, self.geometry, self.root.value if root is None else root, virtual
        ).steps
        for step in steps[:-1]:
            assert step.value is not None
            self.patches[step.entry_address] = (step.value | add & ~NX) & ~(take & NX)
        last = steps[-1]
        assert last.value is not None
        self.patches[last.entry_address] = (last.value | add) & ~take


def states(kernel: Kernel) -> Dict[str, str]:
    return {row.key: row.state for row in check(kernel).tables[0].rows}


def test_a_kernel_that_checked_itself_passes(core: Core, kernel: Kernel) -> None:
    """CONFIG_DEBUG_WX says so at boot, of the kernel's tables and of those for user mode."""
    if "Checked W+X mappings: passed" not in core.truth("dmesg"):
        pytest.skip("built without CONFIG_DEBUG_WX")
    found = states(kernel)
    assert found["wx"] == "ok"
    assert "failed" not in found.values()


def symbol(kernel: Kernel, name: str) -> int:
    try:
        return kernel.symbol(name)
    except Unavailable as error:
        pytest.skip(error.what)


def test_writable_text_is_found(kernel: Kernel) -> None:
    patched = Patched(kernel)
    address = symbol(kernel, "_text") + 0x1000
    patched.change(address, add=RW)
    found = states(patched)
    assert (found["wx"], found["text_ro"], found["rodata_ro"]) == ("failed", "failed", "ok")
    (row,) = (row for row in check(patched).tables[0].rows if row.key == "wx")
    assert any(place.start <= address <= place.end for place in row.places)
    report = check(patched)
    assert report.negative
    assert not report.partial


def test_executable_data_is_found(kernel: Kernel) -> None:
    patched = Patched(kernel)
    patched.change(symbol(kernel, "init_task"), take=NX)
    found = states(patched)
    assert (found["data_nx"], found["wx"], found["text_ro"]) == ("failed", "failed", "ok")


def test_an_executable_direct_map_is_found(kernel: Kernel) -> None:
    patched = Patched(kernel)
    patched.change(kernel.page_offset_base.value + (32 << 20), take=NX)
    assert states(patched)["direct_map_nx"] == "failed"


def test_writable_rodata_is_found_by_its_alias(kernel: Kernel) -> None:
    patched = Patched(kernel)
    physical = kernel.walk(symbol(kernel, "__start_rodata")).physical
    assert physical is not None
    patched.change(kernel.page_offset_base.value + physical, add=RW)
    found = states(patched)
    assert (found["rodata_ro"], found["wx"]) == ("failed", "ok")


def test_a_user_bit_counts_only_if_all_levels_have_it(kernel: Kernel) -> None:
    address = symbol(kernel, "init_task")
    last = kernel.walk(address).steps[-1]
    assert last.value is not None
    one_level = Patched(kernel)
    one_level.patches[last.entry_address] = last.value | USER
    assert states(one_level)["user_bit"] == "ok"
    all_levels = Patched(kernel)
    all_levels.change(address, add=USER)
    assert states(all_levels)["user_bit"] == "failed"


def test_what_user_mode_must_not_see_is_found(kernel: Kernel) -> None:
    symbol(kernel, "_text")
    if not kernel.pti.value:
        assert states(kernel)["pti_user_half"] == "not-applicable"
        pytest.skip("page-table isolation is off")
    patched = Patched(kernel)
    # The user half gets the entry that has the direct map.
    index = kernel.geometry.index(kernel.page_offset_base.value, kernel.geometry.levels)
    entry = struct.unpack("<Q", kernel.read_physical(kernel.root.value + 8 * index, 8))[0]
    patched.patches[(kernel.root.value | PTI_USER_ROOT_BIT) + 8 * index] = entry
    found = states(patched)
    assert found["pti_user_half"] == "failed"
    assert found["wx"] == "ok"
