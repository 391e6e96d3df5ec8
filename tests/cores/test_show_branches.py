# SPDX-License-Identifier: LGPL-2.1-or-later
"""Structures that differ between kernels: the cores of the matrix have both forms of each, so that the other
tests of `show` run both branches."""

from __future__ import annotations

from typing import Callable, Dict

import pytest

from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.readers.structures import has_member
from kvintro.source import Request
from tests.conftest import VMCORES, Core

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)


def _symbol(name: str) -> Callable[[Kernel], bool]:
    return lambda kernel: kernel.find_symbol(name) is not None


def _member(type_name: str, member: str) -> Callable[[Kernel], bool]:
    return lambda kernel: has_member(kernel, f"struct {type_name}", member)


#: The conditions in kvintro/regions and kvintro/readers.
BRANCHES: Dict[str, Callable[[Kernel], bool]] = {
    "vmalloc areas by node": _symbol("vmap_nodes"),
    "vmalloc areas in one list": _symbol("vmap_area_list"),
    "lazily freed areas in a chain": _symbol("vmap_purge_list"),
    "vmalloc areas with flags": _member("vmap_area", "flags"),
    "modules by kind of memory": _member("module", "mem"),
    "sections of modules counted": _member("module_sect_attrs", "nsections"),
    "executable memory from a cache": _symbol("execmem_cache"),
    "places of modules in execmem_info": _symbol("execmem_info"),
    "ftrace trampolines": _symbol("ftrace_ops_trampoline_list"),
    "kprobe pages": _member("kprobe_insn_cache", "pages"),
    "entry areas drawn": _symbol("_cea_offset"),
    "processes' areas in a maple tree": _member("mm_struct", "mm_mt"),
    "names of anonymous areas": _member("vm_area_struct", "anon_name"),
    "upper files of stacked file systems": _member("backing_file", "user_path"),
    "end of the direct map, first name": _symbol("physmem_end"),
    "end of the direct map, second name": _symbol("direct_map_physmem_end"),
    "nodes": _symbol("node_data"),
    "KASAN": _symbol("kasan_early_shadow_page"),
    "espfix": _symbol("init_espfix_ap"),
}


@pytest.fixture(scope="module")
def taken() -> Dict[str, Dict[str, bool]]:
    """For each branch, the form that each kernel has."""
    found: Dict[str, Dict[str, bool]] = {name: {} for name in BRANCHES}
    releases = set()
    for meta in sorted(VMCORES.glob("built/*/meta.json")):
        core = Core(meta.parent)
        if core.meta["release"] in releases:
            continue
        releases.add(core.meta["release"])
        kernel = open_kernel(Request(core=str(core.path)))
        for name, branch in BRANCHES.items():
            found[name][core.name] = branch(kernel)
    if len(releases) < 5:
        pytest.skip(f"the matrix has five kernels, of which {len(releases)} are built")
    return found


@pytest.mark.parametrize("name", BRANCHES)
def test_both_forms_are_there(taken: Dict[str, Dict[str, bool]], name: str) -> None:
    assert set(taken[name].values()) == {True, False}, taken[name]
