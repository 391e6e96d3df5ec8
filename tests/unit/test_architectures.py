# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each architecture has all members that shared code uses. Type checkers also compare the signatures."""

from __future__ import annotations

from typing import Callable, Dict, Set, Tuple

import pytest

from kvintro.arch import Architecture, aarch64, architectures, by_vmcoreinfo, part, riscv64, x86_64
from kvintro.arch.aarch64.facts import Arm64Facts
from kvintro.arch.riscv64.facts import RiscvFacts
from kvintro.arch.x86_64.facts import X86Facts
from kvintro.kernels import Facts, Kernel
from kvintro.regions import regions_of
from tests import toy
from tests.toy.facts import ToyFacts

X86: Architecture = x86_64.ARCHITECTURE
ARM: Architecture = aarch64.ARCHITECTURE
RISCV: Architecture = riscv64.ARCHITECTURE
TOY: Architecture = toy.ARCHITECTURE
ALL = (X86, ARM, RISCV, TOY)
FACTS: Dict[str, Callable[[Kernel], Facts]] = {
    "x86-64": X86Facts,
    "aarch64": Arm64Facts,
    "riscv64": RiscvFacts,
    "toy": ToyFacts,
}
#: Regions whose place an architecture gives.
PLACED = ("direct_map", "vmalloc", "vmemmap", "modules", "fixmap", "kernel_image", "kasan_shadow")


def members(protocol: type) -> Set[str]:
    """Public names that a protocol requires of a class."""
    return {name for name in vars(protocol) if not name.startswith("_")}


def test_these_are_all() -> None:
    assert {arch.name for arch in ALL} == {"toy", *(arch.name for arch in architectures())} == FACTS.keys()


@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
def test_an_architecture_has_all_members(arch: Architecture) -> None:
    missing = [name for name in members(Architecture) if not hasattr(arch, name)]
    assert not missing
    # Some are set when a kernel's facts are created.
    facts = FACTS[arch.name]
    missing = [name for name in members(Facts) if not hasattr(facts, name) and name != "root"]
    assert not missing


@pytest.mark.parametrize("arch", architectures(), ids=lambda arch: arch.name)
def test_an_architecture_has_its_modules(arch: Architecture) -> None:
    assert part(arch, "facts").FACTS is FACTS[arch.name]
    assert part(arch, "entries").of_any("1").form
    assert part(arch, "ptdump_text").TEXT and part(arch, "ptdump").DUMP
    assert {region.key for region in regions_of(arch)} >= {"user", "non_canonical", *PLACED}
    assert arch.image_parts


def test_texts_of_vmcoreinfo_are_told_apart() -> None:
    keys: Dict[str, Tuple[str, ...]] = {arch.name: tuple(arch.vmcoreinfo_keys) for arch in architectures()}
    for name, wanted in keys.items():
        found = by_vmcoreinfo(dict.fromkeys(wanted, "1"))
        assert found is not None and found.name == name
    assert by_vmcoreinfo({"OSRELEASE": "6.1.0"}) is None


def facts_of(kernel: Kernel) -> Tuple[Facts, ...]:
    """For type checkers."""
    x86: Facts = X86Facts(kernel)
    arm: Facts = Arm64Facts(kernel)
    riscv: Facts = RiscvFacts(kernel)
    made_up: Facts = ToyFacts(kernel)
    return x86, arm, riscv, made_up
