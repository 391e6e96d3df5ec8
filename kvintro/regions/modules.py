# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loadable modules, and other code made at run time (BPF, ftrace trampolines)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import MODULES_END, PAGE_SIZE, PMD_SHIFT, START_KERNEL_MAP
from kvintro.arch.x86_64_kaslr import MODULE_SLOTS, module_slots
from kvintro.errors import Unavailable
from kvintro.model import Absent, Address, AddressRange, Column, Located, Placement, Size, Table
from kvintro.readers.mapped import View
from kvintro.readers.names import module_parts
from kvintro.readers.randomness import (
    NO_PLACE,
    Randomised,
    drawn,
    kaslr_enabled,
    not_drawn,
    not_known,
    why_off,
)
from kvintro.readers.structures import (
    TROUBLE,
    Damage,
    has_member,
    list_entries,
    maple_entries,
    need_types,
    number,
    offset_of,
    optional,
    pointer_at,
    struct_at,
    text_at,
    text_of,
)
from kvintro.regions import Asked, Contents, Region
from kvintro.regions.fixmap import has_kmap_slots
from kvintro.text import size_text
from kvintro.types import KASAN

if TYPE_CHECKING:
    import drgn

    from kvintro.kernel import Kernel

_MAX_MODULES = 1 << 12
_KASAN_SHADOW_SHIFT = 3  # KASAN_SHADOW_SCALE_SHIFT
_MAX_SECTIONS = 1 << 16  # -ffunction-sections makes thousands
_LIVE, _COMING, _GOING, _UNFORMED = range(4)  # enum module_state
_STATES = {_LIVE: "Live", _COMING: "Loading", _GOING: "Unloading"}
# With CONFIG_STRICT_MODULE_RWX, which x86 always has, after kernel/module/strict_rwx.c was done.
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
    :ivar expected: rights that the kind should have.
    :ivar rights: rights that the page tables give, in the order of addresses.
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

    :ivar kind: kind of the piece of memory that it lies in, None if it was freed after loading.
    """

    module: str
    section: str
    start: Address
    kind: Optional[str]


@dataclass(frozen=True)
class CodeRow:
    """Code that no module brought: BPF programs and trampolines, ftrace trampolines, kprobe slots."""

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
    """A stretch of the cache from which executable memory is handed out in pieces of huge pages."""

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
    Column("page_sizes", "pages"),
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
    Column("end", "end"),
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
    """``MODULES_VADDR .. MODULES_END``: what the image's window leaves below the fixmap."""

    key = "modules"
    row = 13
    name = "modules"
    macro = "MODULES_VADDR"

    def locate(self, kernel: Kernel) -> Located:
        if kernel.source.symbols != "none" and not kernel.has_symbol("__module_address", code=True):
            return Absent("CONFIG_MODULES is off")
        window = kernel.image_window
        start = START_KERNEL_MAP + window.value
        end, provenance = MODULES_END, "MODULES_END"
        if has_kmap_slots(kernel):
            end = MODULES_END - (16 << 20)
        return Placement(AddressRange(start, end - 1), f"{window.provenance}, {provenance}", start)

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """Where the first piece goes: a number of pages behind the start, drawn once and rounded up.

        With the cache of executable memory text comes out of huge pages, and only data from where the draw
        says.
        """
        default = START_KERNEL_MAP + kernel.image_window.value
        try:
            enabled, _ = kaslr_enabled(kernel)
        except Unavailable as error:
            return (not_known(self.key, "modules", error.what),)
        if not enabled:
            return (not_drawn(self.key, "modules", why_off(kernel), default=default, actual=default),)
        found = _first_place(kernel, default)
        if found is None:
            reason = "no module was loaded yet, so nothing was drawn, or the source does not tell"
            return (not_known(self.key, "modules", reason),)
        plain = _alignment(kernel)
        huge = _text_alignment(kernel)
        if huge is None:
            reason = "whether text comes from huge pages is not known without types"
            return (
                not_known(self.key, "modules, text", reason, default=default),
                _draw("modules_data", "modules, data", default, found, plain),
            )
        if huge <= plain:
            return (_draw(self.key, "modules", default, found, plain),)
        return (
            _draw(self.key, "modules, text", default, found, huge),
            _draw("modules_data", "modules, data", default, found, plain),
        )

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Modules by kind of memory, code that was made at run time, and what is free."""
        from kvintro.regions.vmalloc import GAP_COLUMNS, AreaRow, Areas, GapRow, by_caller, gaps_between

        need_types(kernel, "modules")
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        damage = Damage()
        view = View.of(kernel, found.range.start, found.range.end)
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
        allocated: Dict[str, Any] = {}
        try:
            areas = [row for row in Areas(kernel, found.range, damage).rows() if row.start in found.range]
            gaps = gaps_between(found.range, areas)
            allocated = {
                "allocated": Size(sum(row.size for row in areas)),
                "free": Size(sum(gap.size for gap in gaps)),
                "largest_gap": Size(gaps[0].size if gaps else 0),
            }
        except Unavailable as error:
            damage.add("what is allocated and what is free cannot be read", error.what)
        totals: Dict[str, Any] = {
            "modules": len(modules),
            "module_memory": Size(sum(row.size for row in memory)),
            "mapped": Size(view.stretch(found.range.start, found.range.end).mapped),
            "bpf_programs": sum(row.kind == "bpf program" for row in code),
            "trampolines": sum("trampoline" in row.kind for row in code),
            **allocated,
        }
        wrong: List[Any] = [row for rows in (memory, code) for row in rows if row.problem]
        notes = [*damage.notes]
        if wrong:
            shown = "; ".join(f"{row.start:016x}: {row.problem}" for row in wrong[:3])
            notes.append(f"{len(wrong)} pieces are not mapped as they should be: {shown}")
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


def _first_place(kernel: Kernel, default: int) -> Optional[Tuple[int, str]]:
    """(address, where it was read): ``module_load_offset``; since 223b5e57d0d5 "mm/execmem, arch: convert
    remaining overrides of module_alloc to execmem" (6.10) the start of the first range of ``execmem_info``.
    """
    if kernel.find_symbol("module_load_offset") is not None:
        offset = kernel.value("module_load_offset").value
        return (default + offset, "module_load_offset") if offset else None
    at = _ranges(kernel, default)
    if at is None:
        return None
    return pointer_at(kernel, at), "execmem_info.ranges[EXECMEM_MODULE_TEXT].start"


def _ranges(kernel: Kernel, default: int) -> Optional[int]:
    """Where ``execmem_info.ranges`` lies; each begins with its start."""
    try:
        # Of two variables of this name one is a pointer to the other.
        candidates = kernel.prog.symbols("execmem_info")
    except LookupError:
        return None
    for symbol in candidates:
        try:
            if default <= pointer_at(kernel, symbol.address) < MODULES_END:
                return int(symbol.address)
        except Unavailable:
            continue
    return None


def _draw(key: str, what: str, default: int, found: Tuple[int, str], align: int) -> Randomised:
    """The first place in the region with such an alignment."""
    start, provenance = found
    rounded = "" if align == PAGE_SIZE else f", rounded up to {size_text(align)}"
    return drawn(
        key,
        what,
        default=default,
        actual=-(-start // align) * align,
        granularity=align,
        slots=module_slots(align),
        provenance=provenance,
        computed=f"1 to {MODULE_SLOTS} pages{rounded}",
        note="" if 0 < start - default <= MODULE_SLOTS * PAGE_SIZE and start % PAGE_SIZE == 0 else NO_PLACE,
    )


def _alignment(kernel: Kernel) -> int:
    """MODULE_ALIGN: with KASAN and no shadow of vmalloc, whole pages of shadow."""
    kasan = kernel.has_symbol(KASAN, code=True) and not kernel.has_symbol("kasan_populate_vmalloc", code=True)
    return PAGE_SIZE << _KASAN_SHADOW_SHIFT if kasan else PAGE_SIZE


def _text_alignment(kernel: Kernel) -> Optional[int]:
    """What a piece of text is aligned to: 2 MB if it comes from the cache (mm/execmem.c:
    execmem_cache_populate_alloc), 1 if it is like any other; None if the source does not tell.

    2e45474ab14f "execmem: add support for cache of large ROX pages" brought the cache; x86 has used it on and
    off since, and not on processors without PSE (arch/x86/mm/init.c:execmem_arch_setup).
    """
    if not kernel.has_symbol("execmem_fill_trapping_insns", code=True):
        return 1
    try:
        first = _ranges(kernel, START_KERNEL_MAP)
        if first is None:
            return None
        text = struct_at(kernel, "struct execmem_range", first)
        cached = number(text, "flags") & int(kernel.prog.constant("EXECMEM_ROX_CACHE").value_())
        # nohugevmalloc: mm/vmalloc.c:__vmalloc_node_range_noprof.
        huge = kernel.value("vmap_allow_huge", 1).value
    except (LookupError, Unavailable):
        return None
    return 1 << PMD_SHIFT if cached and huge else 1


def each_module(kernel: Kernel, damage: Damage) -> Iterator[Tuple[int, drgn.Object]]:
    """(address, struct module) of all modules that /proc/modules would list, the last loaded first."""
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
        if not START_KERNEL_MAP <= start < start + size <= 1 << 64:
            damage.add("a module's memory lies nowhere", f"{name}: {start:#x}")
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
    """(name, address) by ``module.sect_attrs`` (kernel/module/sysfs.c), in the three forms it has had.

    Empty sections are not in it, nor are those of init memory once that is freed.
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
    # The group's list of attributes ends with a NULL; the address is what the attribute keeps for itself.
    group = attributes.grp.read_()
    pointers = number(group, "bin_attrs") or number(group, "bin_attrs_new")
    for index in range(_MAX_SECTIONS):
        pointer = pointer_at(kernel, pointers + 8 * index)
        if not pointer:
            return
        entry = struct_at(kernel, "struct bin_attribute", pointer)
        yield text_at(kernel, number(entry.attr, "name"), 256), number(entry, "private")


def _taint_letters(kernel: Kernel) -> List[Tuple[int, str]]:
    """(bit, letter) of the taints that modules can have; empty if they cannot be read."""
    try:
        array = kernel.prog.type("struct taint_flag")
        base = kernel.symbol("taint_flags")
        count = int(kernel.prog.constant("TAINT_FLAGS_COUNT").value_())
    except (LookupError, Unavailable):
        # TAINT_FLAGS_COUNT is a macro: the array ends where its next symbol starts.
        try:
            size = kernel.prog.symbol("taint_flags").size
            array = kernel.prog.type("struct taint_flag")
            base = kernel.symbol("taint_flags")
            count = min(size // int(array.size or 1), 32)
        except (LookupError, Unavailable):
            return []
    out = []
    for bit in range(count):
        try:
            flag = struct_at(kernel, "struct taint_flag", base + bit * int(array.size or 1))
        except Unavailable:
            break
        letter = chr(number(flag, "c_true") & 0x7F)
        if number(flag, "module") and letter.isalpha():
            out.append((bit, letter))
    return out


def _code(kernel: Kernel, view: View, damage: Damage) -> Iterator[CodeRow]:
    """What has no module: each kind is there only if the kernel was built with it and uses it."""
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
            yield from _code_row(view, number(entry, "insns"), 4096, "kprobe page", symbol, damage)


def _code_row(view: View, start: int, size: int, kind: str, name: str, damage: Damage) -> Iterator[CodeRow]:
    if not 1 << 63 <= start < start + size <= 1 << 64:
        damage.add(f"a {kind} lies nowhere", f"{start:#x}, {size} bytes")
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
