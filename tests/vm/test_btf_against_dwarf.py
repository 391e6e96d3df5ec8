# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvintro's types and variables, from a kernel's BTF, kallsyms and table of variables, against its DWARF.

A vmlinux with DWARF has both, so types and variables need no dump. drgn's helpers are tried on each dump
whose vmlinux is in the lab's cache (``vmcores/build.py --debug-vmlinux``).
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Optional, Tuple

import drgn
import pytest
from drgn import TypeKind
from drgn.helpers.linux.kallsyms import load_module_kallsyms

from kvintro.errors import WrongVmlinux
from kvintro.kernels import Kernel
from kvintro.source import Request, open_source
from kvintro.source.btf import STRUCT, UNION
from tests.conftest import ROOT, Core

CACHE = Path(
    os.environ.get("KVINTRO_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvintro"
)
EM_X86_64 = 62


def _is_x86(path: Path) -> bool:
    """If this ELF file's machine is x86-64.

    The lab also compiles kernels of other architectures. The data in their vmlinux cannot be read without
    a dump: arm64's is linked as a PIE, and its pointers are zeros until the kernel relocates itself.
    """
    with path.open("rb") as file:
        return int.from_bytes(file.read(20)[18:], "little") == EM_X86_64


VMLINUX = sorted(
    path for kind in ("dbg", "oracle") for path in CACHE.glob(f"{kind}/*/vmlinux") if _is_x86(path)
)


def _tool() -> ModuleType:
    name = "gen_variable_table"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


#: If there is none, a single test says what is missing.
_OR_NONE: "List[Optional[Path]]" = [*VMLINUX] or [None]


@pytest.fixture(
    params=[pytest.param(path, marks=pytest.mark.xdist_group(f"vmlinux {path}")) for path in _OR_NONE],
    ids=[path.parent.name if path else "none" for path in _OR_NONE],
)
def vmlinux(request: pytest.FixtureRequest) -> Iterator[Path]:
    if request.param is None:
        pytest.skip("no vmlinux with DWARF; run vmcores/build.py --debug-vmlinux")
    yield request.param
    gc.collect()  # each holds hundreds of megabytes


def _signature(type_: drgn.Type) -> Tuple[Any, ...]:
    """A type by its outer form: named types by name, others by their parts."""
    kind = type_.kind
    head = (type_.qualifiers.value, kind.name)
    if kind in (TypeKind.STRUCT, TypeKind.UNION):
        return (*head, type_.tag) if type_.tag else (*head, _members(type_))
    if kind == TypeKind.ENUM:
        return (
            (*head, type_.tag) if type_.tag else (*head, tuple((e.name, e.value) for e in type_.enumerators))
        )
    if kind == TypeKind.TYPEDEF:
        return (*head, type_.name)
    if kind == TypeKind.POINTER:
        return (*head, _signature(type_.type))
    if kind == TypeKind.ARRAY:
        # BTF does not distinguish [] from [0].
        return (*head, type_.length or 0, _signature(type_.type))
    if kind == TypeKind.FUNCTION:
        parameters = tuple(_signature(p.type) for p in type_.parameters)
        return (*head, _signature(type_.type), parameters, type_.is_variadic)
    if kind == TypeKind.VOID:
        return head
    return (*head, type_.name, type_.size, getattr(type_, "is_signed", None))


def _members(type_: drgn.Type) -> Tuple[Any, ...]:
    return tuple((m.name, m.bit_offset, m.bit_field_size, _signature(m.type)) for m in type_.members or ())


def test_structures(vmlinux: Path) -> None:
    kernel = _tool().Vmlinux(str(vmlinux))
    compared = members = bit_fields = 0
    different: List[str] = []
    for kind, drgn_kind, word in ((STRUCT, TypeKind.STRUCT, "struct"), (UNION, TypeKind.UNION, "union")):
        for name in kernel.btf.btf.names(kind):
            if len(kernel.btf.btf.find(kind, name)) > 1:
                continue  # DWARF gives any one of them
            try:
                expected = kernel.dwarf.type(f"{word} {name}")
            except LookupError:
                continue  # only in a unit without DWARF (Rust, assembly)
            found = kernel.btf.find(drgn_kind, name)
            compared += 1
            ours, theirs = _members(found), _members(expected)
            members += len(ours)
            bit_fields += sum(member[2] is not None for member in ours)
            if found.size != expected.size or ours != theirs:
                different.append(f"{word} {name}: {found.size} {expected.size} {set(ours) ^ set(theirs)}")
    assert not different
    assert compared > 2000 and members > 10_000 and bit_fields > 300


def test_variables(vmlinux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = _tool().main(["--check", str(vmlinux)])
    assert status == 0, capsys.readouterr().out


# Each is evaluated with and without DWARF. If a kernel does not have the requested data, both say so.
EXPRESSIONS = """
[(t.pid.value_(), t.comm.string_(), t.flags.value_()) for t in for_each_task(prog)]
[t.pid.value_() for t in for_each_task_in_group(find_task(prog, 1))]
[task_state_to_char(t) for t in for_each_task(prog)]
[task_cpu(t) for t in for_each_task(prog)]
[pid.value_() for pid in for_each_pid(prog)]
pid_task(find_pid(prog, 1), prog["PIDTYPE_PID"]).comm
cmdline(find_task(prog, 1))
environ(find_task(prog, 1))
[(v.vm_start.value_(), v.vm_end.value_(), v.vm_flags.value_()) for v in for_each_vma(find_task(prog, 1).mm)]
vma_find(find_task(prog, 1).mm, 0x400000).value_()
task_rss(find_task(prog, 1))
access_process_vm(find_task(prog, 1), find_task(prog, 1).mm.start_code, 16)
follow_page(find_task(prog, 1).mm, find_task(prog, 1).mm.start_code).value_()
follow_phys(find_task(prog, 1).mm, find_task(prog, 1).mm.start_code).value_()
[f.pc for t in for_each_task(prog) for f in trace(prog, t)]
[m.name.string_() for m in for_each_module(prog)]
[module_address_regions(m) for m in for_each_module(prog)]
[(m.name.string_(), str(module_taints(m))) for m in for_each_module(prog)]
[(va.va_start.value_(), va.va_end.value_(), va.vm.value_()) for va in for_each_vmap_area(prog)]
find_vmap_area(prog, next(iter(for_each_vmap_area(prog))).va_start).va_end
vmalloc_to_page(prog, next(iter(for_each_vmap_area(prog))).va_start).value_()
[(c.name.string_(), c.size.value_(), c.flags.value_()) for c in for_each_slab_cache(prog)]
[slab_cache_usage(c) for c in for_each_slab_cache(prog)]
slab_total_usage(prog)
[o.value_() for o in slab_cache_for_each_allocated_object(find_slab_cache(prog, "pid"), "struct pid")]
slab_object_info(find_task(prog, 1))
[(mount_src(m), mount_dst(m), mount_fstype(m)) for m in for_each_mount(prog)]
[(fd, d_path(f.f_path)) for t in for_each_task(prog) if t.files for fd, f in for_each_file(t)]
d_path(path_lookup(prog, "/proc"))
[s.s_id.string_() for s in entries("struct super_block", prog["super_blocks"].address_of_(), "s_list")]
[(n.node_id.value_(), n.node_spanned_pages.value_()) for n in for_each_online_pgdat(prog)]
[(z.name.string_(), z.present_pages.value_()) for n in for_each_online_pgdat(prog) for z in n.node_zones]
totalram_pages(prog)
nr_free_pages(prog)
nr_blockdev_pages(prog)
[global_node_page_state(prog, prog[x]) for x in ("NR_ANON_MAPPED", "NR_FILE_PAGES", "NR_SHMEM")]
[global_zone_page_state(prog, prog[x]) for x in ("NR_FREE_PAGES", "NR_MLOCK")]
global_vm_event_state(prog, prog["PGFAULT"])
vm_commit_limit(prog)
vm_memory_committed(prog)
hugetlb_total_usage(prog)
[(h.name.string_(), h.nr_huge_pages.value_()) for h in for_each_hstate(prog)]
pfn_to_page(prog, 0x1000).value_()
page_to_pfn(pfn_to_page(prog, 0x1000))
[decode_page_flags(page) for page in pages(prog)]
[PageSlab(page) for page in pages(prog)]
[PageCompound(page) for page in pages(prog)]
[compound_order(compound_head(page)).value_() for page in pages(prog)]
[page_size(compound_head(page)).value_() for page in pages(prog)]
[page_to_virt(page).value_() for page in pages(prog)]
[page_to_phys(page).value_() for page in pages(prog)]
virt_to_page(prog["init_task"].stack).value_()
virt_to_phys(prog["init_task"].stack).value_()
phys_to_virt(prog, 0x1000).value_()
[m.start_section_nr.value_() for m in for_each_memory_block(prog)]
in_direct_map(prog, find_task(prog, 1).value_())
[identify_address(prog, t.value_()) for t in for_each_task(prog)]
[identify_address(prog, t.stack.value_() + 64) for t in for_each_task(prog)]
identify_address(prog, prog["init_task"].address_)
identify_address(prog, prog.symbol("schedule").address + 3)
identify_address(prog, pfn_to_page(prog, 0x1000).value_())
identify_address(prog, 0)
[identify_address(prog, m.value_()) for m in for_each_module(prog)]
list(for_each_online_cpu(prog)), list(for_each_possible_cpu(prog)), list(for_each_present_cpu(prog))
num_online_cpus(prog)
[per_cpu(prog["runqueues"], cpu).nr_running for cpu in for_each_online_cpu(prog)]
[cpu_curr(prog, cpu).comm for cpu in for_each_online_cpu(prog)]
[idle_task(prog, cpu).comm for cpu in for_each_online_cpu(prog)]
loadavg(prog)
[d.name.string_() for d in for_each_netdev(prog)]
netdev_get_by_name(prog, "lo").mtu
[disk_name(d) for d in for_each_disk(prog)]
[part_name(p) for p in for_each_partition(prog)]
[(r.start.value_(), r.name.string_()) for r in for_each_resource(prog["iomem_resource"].address_of_())]
[(irq, d.value_()) for irq, d in for_each_irq_desc(prog)]
get_dmesg(prog)
tainted(prog)
[b.value_() for b in bpf_btf_for_each(prog)]
[css.value_() for css in css_for_each_child(prog["cgrp_dfl_root"].cgrp.self.address_of_())]
[u.uid.val.value_() for u in for_each_user(prog)]
ktime_get_seconds(prog)
kernfs_path(prog["sysfs_root_kn"])
sysfs_lookup(prog, "kernel/mm").value_()
list(for_each_registered_chrdev(prog))
prog["init_uts_ns"].name
prog["jiffies"]
prog["vmemmap"].value_()
prog["direct_pages_count"]
prog["e820_table"].nr_entries
prog["boot_cpu_data"].x86_model_id
prog["pfn_mapped"][0]
[prog["__per_cpu_offset"][cpu].value_() for cpu in for_each_online_cpu(prog)]
prog["memblock"].memory.cnt
prog["vsyscall_mode"]
prog["mod_tree"]
prog["init_mm"].pgd.value_()
prog["efi"].flags
[prog[base].value_() for base in ("page_offset_base", "vmalloc_base", "vmemmap_base")]
""".strip().splitlines()


# Without these variables, drgn uses frame pointers, which these kernels do not have, and assumes a kernel
# without huge pages.
UNNAMED = {"[f.pc for t in for_each_task(prog) for f in trace(prog, t)]", "hugetlb_total_usage(prog)"}


def _answers(request: Request) -> Dict[str, str]:
    prog = open_source(request).prog
    if request.vmlinux:
        # The vmlinux does not have symbols of modules.
        prog.register_symbol_finder("modules", load_module_kallsyms(prog), enable_index=-1)
    for _ in prog.loaded_modules():  # for stacks with frames in modules
        pass
    names: Dict[str, Any] = {}
    for module in ("drgn.helpers.linux", "drgn.helpers.common"):
        loaded = vars(importlib.import_module(module))
        names.update((name, value) for name, value in loaded.items() if not isinstance(value, ModuleType))
    names["pages"] = lambda prog: [names["pfn_to_page"](prog, pfn) for pfn in range(0x100, 0x4000, 0x37)]
    names["trace"] = _trace
    names["entries"] = names["list_for_each_entry"]
    names["prog"] = prog
    answers = {}
    for expression in EXPRESSIONS:
        try:
            answers[expression] = str(eval(expression, names))
        except (LookupError, AttributeError, NameError, TypeError) as e:
            answers[expression] = f"{type(e).__name__}: {e}"
    return answers


def _trace(prog: drgn.Program, task: drgn.Object) -> List[Any]:
    try:
        return [frame for frame in prog.stack_trace(task) if not frame.is_inline]
    except ValueError:  # it was running
        return []


def test_drgns_helpers(core: Core, kernel: Kernel) -> None:
    path = CACHE / str(core.meta.get("vmlinux"))
    if not path.is_file():
        pytest.skip("no vmlinux with DWARF of this core's kernel")
    if not core.meta["kaslr"]:
        pytest.skip("its vmlinux is compared on the dump with KASLR")
    try:
        with_dwarf = _answers(Request(core=str(core.path), vmlinux=str(path)))
    except WrongVmlinux:
        pytest.skip("the vmlinux in the cache is another build than this core's")
    gc.collect()
    without = _answers(Request(core=str(core.path)))
    gc.collect()
    answered = {e for e, a in without.items() if not a.split(":")[0].endswith("Error")}
    compared = set(with_dwarf)
    if kernel.code_only:
        # drgn finds few variables without names, but those must be correct.
        answered -= {*UNNAMED, *(e for e, a in without.items() if a in ("None", "[]"))}
        compared = answered
    assert not {e: (with_dwarf[e], without[e]) for e in compared if without[e] != with_dwarf[e]}
    assert len(answered) > (25 if kernel.code_only else 80)
