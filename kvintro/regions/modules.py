# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loadable modules, and code that the kernel generates at run time (BPF, ftrace trampolines)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    ALL,
    Address,
    Asked,
    Column,
    Contents,
    Located,
    Size,
    Table,
)
from kvintro.readers.damage import Damage
from kvintro.readers.index_trees import maple_entries
from kvintro.readers.lists import list_entries
from kvintro.readers.mapped import View
from kvintro.readers.names import module_parts
from kvintro.readers.structures import (
    TROUBLE,
    has_member,
    need_types,
    number,
    offset_of,
    optional,
    pointer_at,
    struct_at,
    text_at,
    text_of,
)
from kvintro.regions import Region
from kvintro.regions.vmalloc import GAP_COLUMNS, AreaRow, Areas, GapRow, by_caller, gaps_between

if TYPE_CHECKING:
    import drgn

    from kvintro.kernels import Kernel

_MAX_MODULES = 4 << 10
_MAX_SECTIONS = 1 << 16  # -ffunction-sections makes thousands
_LIVE, _COMING, _GOING, _UNFORMED = range(4)  # enum module_state
_STATES = {_LIVE: "Live", _COMING: "Loading", _GOING: "Unloading"}
#: kernel/panic.c:taint_flags, those of modules. Bits never change their meaning.
_TAINTS = tuple(zip((0, 1, 10, 12, 13, 15, 16, 17, 18), "PFCOEKXTN"))
# With CONFIG_STRICT_MODULE_RWX, which x86 always has, once kernel/module/strict_rwx.c has run.
_RIGHTS = {
    "text": "r-x",
    "rodata": "r--",
    "ro_after_init": "r--",
    "data": "rw-",
    "init_text": "r-x",
    "init_rodata": "r--",
    "init_ro_after_init": "r--",
    "init_data": "rw-",
}


@dataclass(frozen=True)
class MemoryRow:
    """A piece of memory of a module.

    :ivar kind: ``text``, ``rodata``, ``ro_after_init``, ``data``, or one of them with ``init_``.
    :ivar expected: rights that memory of this kind should have.
    :ivar rights: rights in the page tables, in order of address.
    """

    start: Address
    end: Address
    size: Size
    module: str
    kind: str
    expected: str
    rights: Tuple[str, ...]
    mapped: Size
    page_sizes: Dict[str, int]
    problem: Optional[str]


@dataclass(frozen=True)
class ModuleRow:
    """A module as /proc/modules prints it."""

    name: str
    size: Size
    references: int
    users: Tuple[str, ...]
    state: str
    address: Optional[Address]
    taints: str
    pieces: int


@dataclass(frozen=True)
class SectionRow:
    """A section of a module, as /sys/module/MODULE/sections has it.

    :ivar kind: kind of the piece of memory that contains it, None if it was freed after loading.
    """

    module: str
    section: str
    start: Address
    kind: Optional[str]


@dataclass(frozen=True)
class CodeRow:
    """Code that belongs to no module: BPF programs and trampolines, ftrace trampolines, kprobe slots."""

    start: Address
    end: Address
    size: Size
    kind: str
    name: str
    rights: Tuple[str, ...]
    mapped: Size
    problem: Optional[str]


@dataclass(frozen=True)
class CacheRow:
    """A range of the cache of executable memory, which hands out parts of huge pages."""

    start: Address
    end: Address
    size: Size
    state: str
    rights: Tuple[str, ...]


_MEMORY_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("module", "module"),
    Column("kind", "type"),
    Column("rights", "rights"),
    Column("page_sizes", "pages", spare=1),
    Column("problem", ""),
)
_MODULE_COLUMNS = (
    Column("name", "module"),
    Column("size", "size", "right"),
    Column("references", "refs", "right"),
    Column("users", "used by"),
    Column("state", "state"),
    Column("address", "text at"),
    Column("taints", "taints"),
)
_SECTION_COLUMNS = (
    Column("module", "module"),
    Column("section", "section"),
    Column("start", "address"),
    Column("kind", "in"),
)
_CODE_COLUMNS = (
    Column("start", "start"),
    Column("end", "end", spare=2),
    Column("size", "size", "right"),
    Column("kind", "kind"),
    Column("name", "name"),
    Column("rights", "rights"),
    Column("problem", ""),
)
_CACHE_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("state", "state"),
    Column("rights", "rights"),
)


class Modules(Region):
    """``MODULES_VADDR .. MODULES_END``."""

    key = "modules"
    row = 13
    name = "modules"
    macro = "MODULES_VADDR"
    traits = Trait.SYMBOLS | Trait.AREAS | Trait.IN_USE

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Modules by kind of memory, code generated at run time, and free ranges."""
        need_types(kernel, "modules")
        found = kernel.place(self)
        damage = Damage()
        # Modules and other code may also be in the vmalloc area.
        view = View.of(kernel, kernel.form.kernel.start, ALL)
        memory: List[MemoryRow] = []
        modules: List[ModuleRow] = []
        sections: List[SectionRow] = []
        taints = _taint_letters(kernel)
        for address, module in each_module(kernel, damage):
            try:
                row, pieces = _module(kernel, view, address, module, taints, damage)
                modules.append(row)
                memory.extend(pieces)
                sections.extend(_sections(kernel, row.name, module, pieces, damage))
            except TROUBLE as error:
                damage.add("a module cannot be read", f"{address:016x}: {error}")
        memory.sort(key=lambda row: row.start)
        code = sorted(_code(kernel, view, damage), key=lambda row: row.start)
        cache = list(_cache(kernel, view, damage))
        areas: List[AreaRow] = []
        gaps: List[GapRow] = []
        allocated: Dict[str, object] = {}
        try:
            reader = Areas(kernel, found.range, damage, within=found.range)
            areas = [row for row in reader.rows() if row.start in found.range]
            gaps = gaps_between(found.range, areas)
            allocated = {
                "allocated": Size(sum(row.size for row in areas)),
                "free": Size(sum(gap.size for gap in gaps)),
                "largest_gap": Size(gaps[0].size if gaps else 0),
            }
        except Unavailable as error:
            damage.add("what is allocated and what is free cannot be read", error.what)
        totals: Dict[str, object] = {
            "modules": len(modules),
            "module_memory": Size(sum(row.size for row in memory)),
            "mapped": Size(view.stretch(found.range.start, found.range.end).mapped),
            "bpf_programs": sum(row.kind == "bpf program" for row in code),
            "trampolines": sum("trampoline" in row.kind for row in code),
            **allocated,
        }
        notes = [*damage.notes, *_disagreements([*memory, *code])]
        tables = [
            Table("memory", _MEMORY_COLUMNS, memory),
            Table("modules", _MODULE_COLUMNS, modules, "modules"),
            Table("sections", _SECTION_COLUMNS, sections, "sections"),
            Table("code", _CODE_COLUMNS, code, "other code"),
        ]
        if cache:
            tables.append(Table("cache", _CACHE_COLUMNS, cache, "cache of executable memory"))
        tables.append(by_caller(areas, "allocated by"))
        tables.append(Table("gaps", GAP_COLUMNS, gaps, "free gaps"))
        return Contents(tables, totals, notes, partial=bool(damage))


def _disagreements(pieces: Sequence[Union[MemoryRow, CodeRow]]) -> Iterator[str]:
    """A note for pieces that the page tables map differently than expected."""
    wrong = [row for row in pieces if row.problem]
    if wrong:
        shown = "; ".join(f"{row.start:016x}: {row.problem}" for row in wrong[:3])
        yield f"{len(wrong)} pieces are not mapped as they should be: {shown}"


def each_module(kernel: Kernel, damage: Damage) -> Iterator[Tuple[int, drgn.Object]]:
    """(address, struct module) of all modules in /proc/modules, the last loaded first."""
    head = kernel.symbol("modules")
    for address, module in list_entries(
        kernel, head, "struct module", "list", damage, "the list of modules", limit=_MAX_MODULES
    ):
        if number(module, "state") != _UNFORMED:
            yield address, module


def _module(
    kernel: Kernel,
    view: View,
    address: int,
    module: drgn.Object,
    taints: Sequence[Tuple[int, str]],
    damage: Damage,
) -> Tuple[ModuleRow, List[MemoryRow]]:
    name, state = text_of(module.name), number(module, "state")
    pieces = []
    for kind, start, size in module_parts(module):
        if not kernel.form.kernel.start <= start < start + size <= 1 << 64:
            damage.add("a module's memory has an invalid address", f"{name}: {start:#x}")
            continue
        pieces.append(_piece(view, name, kind, state, start, size))
    users = []
    source = offset_of(kernel, "struct module", "source_list")
    for _, use in list_entries(
        kernel,
        address + source,
        "struct module_use",
        "source_list",
        damage,
        f"the list of {name}'s users",
        limit=1000,
    ):
        users.append(text_of(struct_at(kernel, "struct module", number(use, "source")).name))
    if number(module, "init") and not number(module, "exit"):
        users.append("[permanent]")
    # module_refcount(): one reference is the module's own.
    references = int(module.refcnt.counter.value_()) - 1
    bits = number(module, "taints")
    letters = "".join(letter for bit, letter in taints if bits >> bit & 1)
    letters += {_GOING: "-", _COMING: "+"}.get(state, "")
    text = next((row.start for row in pieces if row.kind == "text"), None)
    row = ModuleRow(
        name=name,
        size=Size(sum(row.size for row in pieces)),
        references=references,
        users=tuple(users),
        state=_STATES.get(state, f"state {state}"),
        address=text,
        taints=f"({letters})" if letters else "",
        pieces=len(pieces),
    )
    return row, pieces


def _piece(view: View, module: str, kind: str, state: int, start: int, size: int) -> MemoryRow:
    found = view.stretch(start, start + size - 1)
    expected = _RIGHTS[kind]
    if kind.endswith("ro_after_init") and state == _COMING:
        expected = "rw-"
    problem = None
    if found.mapped != size and not found.unreadable:
        problem = f"{found.mapped} of {size} bytes are mapped"
    elif found.rights and found.rights != (expected,) and state == _LIVE:
        problem = f"{' '.join(found.rights)}, should be {expected}"
    return MemoryRow(
        start=Address(start),
        end=Address(start + size - 1),
        size=Size(size),
        module=module,
        kind=kind,
        expected=expected,
        rights=found.rights,
        mapped=Size(found.mapped),
        page_sizes=dict(found.pages),
        problem=problem,
    )


def _sections(
    kernel: Kernel, name: str, module: drgn.Object, pieces: Sequence[MemoryRow], damage: Damage
) -> Iterator[SectionRow]:
    try:
        for section, address in section_addresses(kernel, module):
            kind = next((row.kind for row in pieces if row.start <= address <= row.end), None)
            yield SectionRow(name, section, Address(address), kind)
    except TROUBLE as error:
        damage.add("sections of a module cannot be read", f"{name}: {error}")


def section_addresses(kernel: Kernel, module: drgn.Object) -> Iterator[Tuple[str, int]]:
    """(name, address) from ``module.sect_attrs`` (kernel/module/sysfs.c), in each of its three forms.

    It contains neither empty sections nor, once that is freed, those of init memory.
    """
    attributes = optional(module, "sect_attrs")
    if attributes is None or not attributes:
        return
    if has_member(kernel, "struct module_sect_attrs", "nsections"):
        count = int(attributes.nsections.value_())
        if count > _MAX_SECTIONS:
            raise ValueError(f"{count} sections")
        for index in range(count):
            entry = attributes.attrs[index].read_()
            # A bin_attribute since ed66f991bb19 "module: Refactor section attr into bin attribute" (5.8).
            inner = entry.battr.attr if optional(entry, "battr") is not None else entry.mattr.attr
            yield text_at(kernel, number(inner, "name"), 256), number(entry, "address")
        return
    # The group's list of attributes ends with NULL. An attribute's private field holds the address.
    group = attributes.grp.read_()
    pointers = number(group, "bin_attrs") or number(group, "bin_attrs_new")
    for index in range(_MAX_SECTIONS):
        pointer = pointer_at(kernel, pointers + 8 * index)
        if not pointer:
            return
        entry = struct_at(kernel, "struct bin_attribute", pointer)
        yield text_at(kernel, number(entry.attr, "name"), 256), number(entry, "private")


def _taint_letters(kernel: Kernel) -> Sequence[Tuple[int, str]]:
    """(bit, letter) of the taints of modules; those of 6.12 if they cannot be read."""
    try:
        array = kernel.prog.type("struct taint_flag")
        base = kernel.symbol("taint_flags")
        count = int(kernel.prog.constant("TAINT_FLAGS_COUNT").value_())
    except (LookupError, Unavailable):
        # TAINT_FLAGS_COUNT is a macro. The array ends at the next symbol.
        try:
            size = kernel.prog.symbol("taint_flags").size
            array = kernel.prog.type("struct taint_flag")
            base = kernel.symbol("taint_flags")
            count = min(size // int(array.size or 1), 32)
        except (LookupError, Unavailable):
            return _TAINTS
    out = []
    for bit in range(count):
        try:
            flag = struct_at(kernel, "struct taint_flag", base + bit * int(array.size or 1))
        except Unavailable:
            break
        letter = chr(number(flag, "c_true") & 0x7F)
        # Newer kernels do not say which are of modules, and print all that a module has.
        if letter.isalpha() and (not array.has_member("module") or number(flag, "module")):
            out.append((bit, letter))
    return out


def _code(kernel: Kernel, view: View, damage: Damage) -> Iterator[CodeRow]:
    """Code outside modules. Each kind exists only if the kernel was built with it and uses it."""
    if kernel.code_only:
        damage.add("code that was made at run time cannot be listed", kernel.nameless("bpf_kallsyms").what)
    if kernel.find_symbol("bpf_kallsyms") is not None:
        entries = list_entries(
            kernel,
            kernel.symbol("bpf_kallsyms"),
            "struct bpf_ksym",
            "lnode",
            damage,
            "the list of BPF programs",
        )
        for _, entry in entries:
            start, end = number(entry, "start"), number(entry, "end")
            kind = "bpf program" if number(entry, "prog") else "bpf trampoline"
            yield from _code_row(view, start, end - start, kind, text_of(entry.name), damage)
    if kernel.find_symbol("ftrace_ops_trampoline_list") is not None:
        entries = list_entries(
            kernel, kernel.symbol("ftrace_ops_trampoline_list"), "struct ftrace_ops", "list", damage,
            "the list of ftrace trampolines",
        )  # fmt: skip
        for _, entry in entries:
            start, size = number(entry, "trampoline"), number(entry, "trampoline_size")
            if start and size:
                yield from _code_row(view, start, size, "ftrace trampoline", "ftrace_trampoline", damage)
    for symbol in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
        if kernel.find_symbol(symbol) is None or not has_member(kernel, "struct kprobe_insn_cache", "pages"):
            continue
        head = kernel.symbol(symbol) + offset_of(kernel, "struct kprobe_insn_cache", "pages")
        for _, entry in list_entries(
            kernel, head, "struct kprobe_insn_page", "list", damage, f"pages of {symbol}"
        ):
            yield from _code_row(
                view, number(entry, "insns"), kernel.form.page_size, "kprobe page", symbol, damage
            )


def _code_row(view: View, start: int, size: int, kind: str, name: str, damage: Damage) -> Iterator[CodeRow]:
    if not 1 << 63 <= start < start + size <= 1 << 64:
        damage.add(f"a {kind} has an invalid address", f"{start:#x}, {size} bytes")
        return
    found = view.stretch(start, start + size - 1)
    problem = None
    if found.mapped != size and not found.unreadable:
        problem = f"{found.mapped} of {size} bytes are mapped"
    elif any("x" not in rights or "w" in rights for rights in found.rights):
        problem = f"{' '.join(found.rights)}, should be r-x"
    yield CodeRow(
        Address(start),
        Address(start + size - 1),
        Size(size),
        kind,
        name,
        found.rights,
        Size(found.mapped),
        problem,
    )


def _cache(kernel: Kernel, view: View, damage: Damage) -> Iterator[CacheRow]:
    """``execmem_cache``, since 2e45474ab14f "execmem: add support for cache of large ROX pages" (6.13)."""
    if kernel.find_symbol("execmem_cache") is None or not has_member(
        kernel, "struct execmem_cache", "busy_areas"
    ):
        return
    rows: List[CacheRow] = []
    for state in ("busy", "free"):
        tree = kernel.symbol("execmem_cache") + offset_of(kernel, "struct execmem_cache", f"{state}_areas")
        try:
            for start, end, _ in maple_entries(kernel, tree, damage, f"execmem_cache.{state}_areas"):
                rights = view.stretch(start, end).rights
                rows.append(CacheRow(Address(start), Address(end), Size(end - start + 1), state, rights))
        except Unavailable as error:
            damage.add("the cache of executable memory cannot be read", error.what)
    yield from sorted(rows, key=lambda row: row.start)


REGION = Modules()
