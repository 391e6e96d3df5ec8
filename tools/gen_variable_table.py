#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make kvintro/source/_variable_table.py from the debuginfo of several kernels.

    tools/gen_variable_table.py [--check] VMLINUX...

BTF lacks two things that DWARF has: the types of global variables, and the shape of arrays with more than one
dimension. This finds both in the vmlinux files given (the newest first), for

- the variables that drgn's own helpers and commands name, read from their sources, and those listed here;
- all structures that the kernels' BTF has.

Then this reads each vmlinux as kvintro reads a kernel without debuginfo, from its BTF and kallsyms, and
compares the table with DWARF. It prints the differences. The exit status is 1 if a type is wrong. With
--check, nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import struct
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import drgn
from drgn import TypeKind

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvintro.source import btf as kvintro_btf  # noqa: E402
from kvintro.source import installed as kvintro_types  # noqa: E402
from kvintro.source import variables  # noqa: E402

TABLE = ROOT / "kvintro" / "source" / "_variable_table.py"

KALLSYMS = [
    "kallsyms_" + name
    for name in ("num_syms", "names", "token_table", "token_index", "offsets", "relative_base")
]
# Variables that libdrgn uses (drgn_program_find_object() in libdrgn/*.c, which the wheel does not contain).
LIBDRGN = """
    __cpu_present_mask __irq_regs __per_cpu_offset contig_page_data cpu_present_mask crash_notes
    crashing_cpu init_pid_ns init_task jiffies_64 mem_map mem_section modules nr_cpu_ids
    page_offset_base panic_cpu runqueues saved_command_line
"""
# Variables that kvintro uses, and others that users are likely to look at.
WANTED = """
    page_offset_base vmalloc_base vmemmap_base phys_base physical_mask high_memory max_pfn max_low_pfn
    max_possible_pfn min_low_pfn max_mapnr max_pfn_mapped max_low_pfn_mapped physmem_end
    direct_map_physmem_end pgdir_shift ptrs_per_p4d __pgtable_l5_enabled init_top_pgt level1_fixmap_pgt
    level2_fixmap_pgt level2_kernel_pgt level3_kernel_pgt level3_ident_pgt level4_kernel_pgt
    early_top_pgt swapper_pg_dir trampoline_pgd_entry init_mm efi_mm tboot_mm poking_mm text_poke_mm efi
    efi_va efi_prev_pgd e820_table e820_table_kexec e820_table_firmware vmap_area_list vmap_area_root
    vmap_nodes nr_vmap_nodes vmap_zone_size single vmap_lazy_nr nr_vmalloc_pages free_vmap_area_root
    free_vmap_area_list vmlist vm_area_cachep vmap_initialized mem_section iomem_resource
    ioport_resource direct_pages_count direct_gbpages page_size_mask pfn_mapped nr_pfn_mapped memblock
    memblock_memory_init_regions memblock_reserved_init_regions physmem modules btf_modules btf_idr
    mod_tree module_blacklist bpf_prog_pack pack_list bpf_kallsyms bpf_jit_limit_max module_load_offset
    module_kaslr execmem_info execmem_cache default_execmem_info boot_cpu_data cpu_caps_set
    cpu_caps_cleared cpu_khz tsc_khz saved_command_line boot_command_line builtin_cmdline boot_params
    initrd_start initrd_end vsyscall_mode gate_vma vdso_image_64 vdso64_enabled espfix_pages
    espfix_pud_page page_random slot_random node_data contig_page_data node_states node_possible_map
    nr_cpu_ids nr_node_ids __cpu_possible_mask __cpu_online_mask __cpu_present_mask __cpu_active_mask
    __per_cpu_offset init_task init_cred init_user_ns init_nsproxy slab_caches slab_mutex init_uts_ns
    linux_banner linux_proc_banner kasan_early_shadow_page kasan_early_shadow_pte kasan_early_shadow_pmd
    kasan_early_shadow_pud kasan_early_shadow_p4d kasan_flag_enabled kasan_flag_vmalloc sme_me_mask
    sev_status cc_mask cc_vendor __default_kernel_pte_mask __supported_pte_mask __cachemode2pte_tbl
    __pte2cachemode_tbl protection_map zero_page empty_zero_page __zero_page zero_pfn huge_zero_page
    huge_zero_folio huge_zero_pfn hugetlb_cgrp_idx hstates hugetlb_max_hstate default_hstate_idx
    totalram_pages _totalram_pages _totalreserve_pages totalreserve_pages sysctl_overcommit_memory
    vm_committed_as vm_node_stat vm_zone_stat vm_numa_event swap_info nr_swapfiles nr_swap_pages
    total_swap_pages swapper_spaces __brk_base _brk_start _brk_end __end_of_fixed_addresses fixmaps_set
    bm_pte slot_virt prev_map prev_size idt_table idt_descr gdt_page cpu_tss_rw cpu_entry_area
    irq_stack_backing_store exception_stacks hardirq_stack_ptr crashk_res crashk_low_res
    kexec_crash_image kexec_image vmcoreinfo_data vmcoreinfo_size vmcoreinfo_note log_buf log_buf_len
    __log_buf prb printk_rb_static printk_rb_dynamic console_drivers panic_cpu crashing_cpu tainted_mask
    oops_in_progress jiffies jiffies_64 tk_core timekeeper xtime_nsec system_state randomize_va_space
    vm_memory_enabled kfence_allocation_gate __kfence_pool kfence_metadata secretmem_users
    root_mem_cgroup cgrp_dfl_root super_blocks file_systems inode_in_use tasklist_lock pid_hash
    pidmap_lock init_pid_ns init_ipc_ns init_net net_namespace_list xen_domain_type xen_start_info
    x86_platform x86_init hyperv_pcpu_input_arg pv_ops mmlist_lock ftrace_trampoline_list
    ftrace_ops_list kprobe_table optinsn_slots kprobe_insn_slots kprobe_optinsn_slots kmalloc_caches
    swap_slots_initialized zswap_enabled mem_hotplug_lock section_to_node_table pageblock_order
    compact_defer_shift sysctl_compact_memory first_online_pgdat movable_node_enabled text_mutex
    init_thread_union init_stack numa_nodes_parsed x86_cpu_to_node_map_early_map pti_mode l5_required
    enc_features disabled_cpu_caps
"""
# Variables without debuginfo (assembly, linker script), or that no usual kernel has.
BY_HAND = {
    "early_top_pgt": ("pgd_t[]",),
    "execmem_info": ("struct execmem_info",),  # a pointer has the same name
    "init_thread_union": ("union thread_union",),
    "init_top_pgt": ("pgd_t[]",),
    "kasan_early_shadow_p4d": ("p4d_t[]",),
    "kasan_early_shadow_page": ("unsigned char[]",),
    "kasan_early_shadow_pmd": ("pmd_t[]",),
    "kasan_early_shadow_pte": ("pte_t[]",),
    "kasan_early_shadow_pud": ("pud_t[]",),
    "level1_fixmap_pgt": ("pte_t[]",),
    "level2_fixmap_pgt": ("pmd_t[]",),
    "level2_kernel_pgt": ("pmd_t[]",),
    "level3_ident_pgt": ("pud_t[]",),
    "level3_kernel_pgt": ("pud_t[]",),
    "phys_base": ("unsigned long",),
    # Types without a name.
    "tk_core": ("struct{seq,timekeeper,lock,shadow_timekeeper}", "struct{seq,timekeeper}"),
    "vsyscall_mode": ("typeof(XONLY)",),
}
# Lengths that an enumerator in BTF gives, or that an array in a structure also has.
LENGTHS = {
    "cpu_caps_cleared": "cpuinfo_x86.x86_capability",
    "cpu_caps_set": "cpuinfo_x86.x86_capability",
    "direct_pages_count": "PG_LEVEL_NUM",
    "vm_zone_stat": "NR_VM_ZONE_STAT_ITEMS",
    "vm_node_stat": "NR_VM_NODE_STAT_ITEMS",
    "vm_numa_event": "NR_VM_NUMA_EVENT_ITEMS",
    "node_states": "NR_NODE_STATES",
}
# Lengths that do not depend on the configuration.
CONSTANT = {"__cachemode2pte_tbl", "task_state_array"}
# Arrays without all-zero elements, whose padding would look like more elements.
FULL = {"taint_flags"}
# Types that a symbol had in different kernels, and that neither size nor structure tag distinguishes.
CONDITIONS: Dict[Tuple[str, str], str] = {
    ("file_systems", "struct hlist_head"): "not file_system_type.next",
}


# Differences that cannot be detected without debuginfo, and why they are harmless.
TOLERATED = {
    "nr_swapper_spaces": "MAX_SWAPFILES is nowhere; what padding has in place of more is zero, no spaces",
}


Table = Mapping[str, Sequence[str]]


class Vmlinux:
    """A vmlinux file, once with its DWARF and once as kvintro sees a kernel without it."""

    def __init__(self, path: str) -> None:
        self.path = path
        platform = drgn.Platform(drgn.Architecture.X86_64)
        self.dwarf = drgn.Program(platform)
        self.dwarf.extra_module("vmlinux", create=True).try_file(path, force=True)
        self.bare = drgn.Program(platform)
        symbols = {}
        for name in ("_stext", *KALLSYMS):
            with contextlib.suppress(LookupError):
                symbols[name] = self.dwarf.symbol(name).address
        # drgn requires a page table; the data that is read here does not need it.
        lines = ["OSRELEASE=0", "PAGESIZE=4096", "KERNELOFFSET=0", "SYMBOL(swapper_pg_dir)=1000"]
        lines += [f"SYMBOL({name})={address:x}" for name, address in symbols.items()]
        self.bare.set_linux_kernel_custom("\n".join(lines) + "\n", False)
        self._map_segments()
        self.installed = kvintro_types.install(self.bare, modules=False)
        assert self.installed.kallsyms and self.installed.btf, self.installed
        self.kallsyms = self.installed.kallsyms
        self.btf = self.installed.btf
        self.kasan = self.kallsyms.lookup("__asan_register_globals") is not None

    def _map_segments(self) -> None:
        file = open(self.path, "rb")  # noqa: SIM115  (as long as the program lives)
        header = file.read(64)
        offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)

        def reader(start: int) -> Callable[[int, int, int, bool], bytes]:
            return lambda address, count, offset, physical: os.pread(file.fileno(), count, start + offset)

        for index in range(count):
            file.seek(offset + index * size)
            kind, _, start, address, _, file_size, _, _ = struct.unpack("<IIQQQQQQ", file.read(56))
            if kind == 1 and file_size and address >= 1 << 63:
                self.bare.add_memory_segment(address, file_size, reader(start))

    def declared(self, name: str) -> Optional[drgn.Type]:
        """Type of a variable by DWARF; None if the kernel has no such variable, or BTF types it."""
        if not self.kallsyms.lookup_all(name) or self.btf.find_variable(name):
            return None
        try:
            variable = self.dwarf.variable(name)
        except LookupError:
            return None
        # kallsyms may give a different static variable of the same name.
        if len(self.kallsyms.lookup_all(name)) > 1 and variable.address_ != self.kallsyms.lookup(name):
            print(f"{name} of {self.path} is ambiguous: skipped")
            return None
        return variable.type_

    def variables(self, table: Table) -> variables.VariableTypes:
        return variables.VariableTypes(self.bare, self.btf.find_anonymous, padded=self.kasan, table=table)

    def found(self, name: str, table: Table) -> Optional[drgn.Type]:
        """Type of a variable according to a table."""
        variable = self.variables(table).find(name, self.kallsyms.lookup_all(name))
        return None if variable is None else variable.type_


def helper_names() -> Set[str]:
    """Names of variables in drgn's Python sources, and some names that are not variables."""
    names = set((LIBDRGN + WANTED).split())
    package = Path(drgn.__file__).parent
    for path in [*package.glob("helpers/**/*.py"), *package.glob("commands/**/*.py")]:
        source = path.read_text()
        names.update(re.findall(r"\bprog_?\[\s*\"(\w+)\"", source))
        names.update(re.findall(r"\bprog_?\.(?:object|variable)\(\s*\"(\w+)\"", source))
    return names


def spell(type_: drgn.Type) -> Optional[str]:
    """The name of a type, if the name alone defines it."""
    name = type_.type_name()
    return None if "<anonymous>" in name else name


def is_array(type_: drgn.Type) -> bool:
    return bool(type_.kind == TypeKind.ARRAY)


def candidates(name: str, seen: List[Tuple[Vmlinux, drgn.Type]]) -> List[str]:
    """Entries for a variable: its types in the kernels, the newest first."""
    entries: List[str] = []
    arrays = [(v, type_) for v, type_ in seen if is_array(type_)]
    if name in FULL:
        return [f"{element}[]~" for element in dict.fromkeys(spell(type_.type) for _, type_ in arrays)]
    for _, type_ in seen:
        entry = spell(type_)
        element = spell(type_.type) if is_array(type_) else None
        if element == "const char" or type_.type_name().endswith("[]"):
            entry = f"{element}[?]"
        elif element and name in LENGTHS:
            entry = f"{element}[{LENGTHS[name]}]"
        if name in CONSTANT:
            entry = f"{entry}!"
        if entry and entry not in entries:
            entries.append(entry)
    for element in dict.fromkeys(spell(type_.type) for _, type_ in arrays):
        if element and name not in LENGTHS and name not in CONSTANT and f"{element}[?]" not in entries:
            base, bracket, inner = element.partition("[")
            entry = f"{base.rstrip()}[]{bracket}{inner}"
            sized = [(v, t) for v, t in arrays if not v.kasan]
            if sized and all(same(v.found(name, {name: (entry,)}), t) for v, t in sized):
                entries.append(entry)
    conditions = {entry: CONDITIONS.get((name, entry)) for entry in entries}
    return [f"{entry} if {conditions[entry]}" if conditions[entry] else entry for entry in entries]


def room(vmlinux: Vmlinux, name: str) -> int:
    symbol = vmlinux.kallsyms.lookup_symbol(name)
    return symbol.size if symbol else 0


def same(a: Optional[drgn.Type], b: drgn.Type) -> bool:
    """Whether two types look the same without typedefs and const. A missing length matches any length."""
    if a is None:
        return False
    while a.kind == TypeKind.TYPEDEF:
        a = a.type
    while b.kind == TypeKind.TYPEDEF:
        b = b.type
    if a.kind != b.kind:
        return False
    if a.kind == TypeKind.POINTER:
        return same(a.type, b.type)
    if a.kind == TypeKind.ARRAY:
        return same(a.type, b.type) and (None in (a.length, b.length) or a.length == b.length)
    if a.kind in (TypeKind.STRUCT, TypeKind.UNION):
        if a.tag is None and b.tag is None:
            return [m.name for m in a.members] == [m.name for m in b.members] and a.size == b.size
        return a.tag == b.tag and (a.size == b.size or not a.is_complete() or not b.is_complete())
    if a.kind == TypeKind.ENUM:
        return bool(a.tag == b.tag and a.enumerators == b.enumerators)
    if a.kind in (TypeKind.INT, TypeKind.BOOL):
        return bool(a.size == b.size and a.kind == b.kind)
    return a.kind in (TypeKind.VOID, TypeKind.FUNCTION)


class Shape(NamedTuple):
    owner: str
    member: str
    lengths: Tuple[int, ...]


def shapes(vmlinux: Vmlinux) -> Iterator[Shape]:
    """Arrays with more than one dimension among the members of structures."""
    seen = set()
    for kind, word in ((kvintro_btf.STRUCT, "struct"), (kvintro_btf.UNION, "union")):
        for name in vmlinux.btf.btf.names(kind):
            try:
                type_ = vmlinux.dwarf.type(f"{word} {name}")
            except LookupError:
                continue
            for shape in _shapes(type_, name):
                if shape not in seen:
                    seen.add(shape)
                    yield shape


def _shapes(type_: drgn.Type, owner: str) -> Iterator[Shape]:
    for member in type_.members or ():
        inner = member.type
        lengths = []
        while is_array(inner):
            lengths.append(inner.length or 0)
            inner = inner.type
        if len(lengths) > 1 and member.name:
            yield Shape(owner, member.name, tuple(lengths))
        if inner.kind in (TypeKind.STRUCT, TypeKind.UNION) and inner.tag is None:
            yield from _shapes(inner, owner)


def write(types: Dict[str, Tuple[str, ...]], shape_table: Dict[str, Tuple[Tuple[int, ...], ...]]) -> None:
    lines = [
        "# SPDX-License-Identifier: LGPL-2.1-or-later",
        '"""Generated by tools/gen_variable_table.py: do not edit.',
        "",
        "TYPES: what types each variable has been seen with; kvintro.source.variables reads the entries.",
        "SHAPES: with what lengths each array member of more than one dimension has been seen.",
        '"""',
        "",
        "# ruff: noqa: E501",
        "# fmt: off",
        "",
        "from typing import Callable, Dict, Tuple",
        "",
        "TYPES: Dict[str, Tuple[str, ...]] = {",
    ]
    for name, entries in sorted(types.items()):
        lines.append(f'    "{name}": ({" ".join(f"{chr(34)}{e}{chr(34)}," for e in entries)}),')
    lines += ["}", "", "SHAPES: Dict[str, Tuple[Tuple[int, ...], ...]] = {"]
    for name, tuples in sorted(shape_table.items()):
        lines.append(f'    "{name}": ({" ".join(f"{t}," for t in tuples)}),')
    lines += ["}", ""]
    TABLE.write_text("\n".join(lines))


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument(
        "vmlinux",
        nargs="+",
        help="vmlinux with DWARF and BTF, the newest first; one of them of another configuration, with KASAN",
    )
    arguments = parser.parse_args(argv)
    kernels = [Vmlinux(path) for path in arguments.vmlinux]
    declared = {}
    for name in sorted(helper_names()):
        seen = [(v, t) for v in kernels for t in [v.declared(name)] if t is not None]
        if seen:
            declared[name] = seen
    if arguments.check:
        table = variables.TYPES
    else:
        table = {name: tuple(candidates(name, seen)) for name, seen in declared.items()}
        table = {name: entries for name, entries in table.items() if entries}
        table.update(BY_HAND)
        for name in WANTED.split():
            if name not in table and any(
                v.kallsyms.lookup(name) and not v.btf.find_variable(name) for v in kernels
            ):
                print(f"{name}: there, but its type is unknown")
        shape_table: Dict[str, List[Tuple[int, ...]]] = {}
        for vmlinux in kernels:
            for shape in shapes(vmlinux):
                lengths = shape_table.setdefault(f"{shape.owner}.{shape.member}", [])
                if shape.lengths not in lengths:
                    lengths.append(shape.lengths)
        write(table, {name: tuple(lengths) for name, lengths in shape_table.items()})
    wrong = unknown = 0
    for name, seen in declared.items():
        for vmlinux, type_ in seen:
            result = vmlinux.found(name, table)
            if same(result, type_):
                continue
            if result is None:
                unknown += 1
            elif name not in TOLERATED:
                wrong += 1
            print(
                f"{name}: {type_.type_name()} by DWARF of {vmlinux.path}, "
                f"{result.type_name() if result else 'unknown'} by the table {table.get(name)}, "
                f"room {room(vmlinux, name)} {TOLERATED.get(name, '')}"
            )
    print(
        f"{len(table)} variables, {sum(map(len, declared.values()))} comparisons, "
        f"{unknown} unknown, {wrong} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
