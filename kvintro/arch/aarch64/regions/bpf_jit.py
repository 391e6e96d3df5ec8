# SPDX-License-Identifier: LGPL-2.1-or-later
"""The region of older kernels for the machine code of BPF programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.kernels import Trait
from kvintro.model import Absent, Located, Placement
from kvintro.regions import Region
from kvintro.regions.explained import Explanation

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

EXPLAIN = Explanation(
    purpose="""
    The machine code of BPF programs, in a region of 128 MB below that of modules. Since 5.17 the programs are
    in the vmalloc area.
    """,
)


class BpfJit(Region):
    """BPF_JIT_REGION_START to BPF_JIT_REGION_END - 1 (5.4 to 5.16)."""

    key = "bpf_jit"
    row = 5
    name = "BPF programs"
    macro = "BPF_JIT_REGION_START"
    traits = Trait.AREAS | Trait.IN_USE

    def locate(self, kernel: Kernel) -> Located:
        found = arm64_facts(kernel).bpf
        if found is None:
            return Absent("they are in the vmalloc area")
        return Placement(found, "constant")


REGION = BpfJit()
