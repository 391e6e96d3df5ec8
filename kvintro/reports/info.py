# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts about the dump, available symbols and types, and the commands that work with them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

from kvintro.arch import Architecture, by_vmcoreinfo
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import (
    ALL,
    Address,
    Column,
    Displacement,
    Fact,
    Identity,
    NoExtra,
    Placement,
    Report,
    Size,
    Table,
    Unknown,
)
from kvintro.queries.pages.excluded import excluded_from
from kvintro.queries.placements import only_image_moved
from kvintro.readers import times
from kvintro.readers.command_line import command_line
from kvintro.readers.randomness import bases_are_fixed
from kvintro.reports.excluded import by_type, mistake, no_level
from kvintro.reports.kaslr import kaslr
from kvintro.source import OtherDump, Source
from kvintro.source.elf import Segment
from kvintro.source.vmcoreinfo import Kernels, Search, identity_of, in_silence
from kvintro.text import size_text
from kvintro.types import Installed

T = TypeVar("T")

_BYTE_ORDERS = {"<": "little-endian", ">": "big-endian"}
_MAX_RANGES = 16  # maximum number of ranges of physical memory in one line
_MAX_ERASED = 512  # bytes of eraseinfo in one line
_BANNER = 512  # linux_banner is shorter
_UTS_NAMESPACE = 64  # the first name in struct uts_namespace begins within this many bytes


@dataclass(frozen=True)
class FactRow:
    """One fact about the dump or its kernel; docs/info.md lists the keys.

    :ivar value: None if unknown.
    :ivar provenance: where it was read.
    :ivar reason: why it is unknown.
    """

    key: str
    title: str
    value: Optional[Union[str, int, bool]]
    provenance: Optional[str]
    reason: Optional[str]


@dataclass(frozen=True)
class KernelRow:
    """A kernel in the memory of the source, found by a VMCOREINFO that fits it.

    :ivar vmcoreinfo_at: physical address of its VMCOREINFO, for ``--vmcoreinfo-at``; None if that was not
        found in memory.
    :ivar moved_by: how far KASLR moved the image, from KERNELOFFSET.
    :ivar shown: whether reports are about this kernel.
    """

    vmcoreinfo_at: Optional[Address]
    release: str
    moved_by: Optional[Displacement]
    paging_levels: Optional[int]
    shown: bool


@dataclass(frozen=True)
class CommandRow:
    """What a command can do with this source.

    :ivar state: ``works``, ``partly`` or ``cannot``.
    """

    name: str
    state: str
    reason: Optional[str]


InfoReport = Report[Tuple[Table[FactRow], Table[KernelRow], Table[CommandRow]], NoExtra]

FACT_COLUMNS = (Column("title", "fact"), Column("value", "value"), Column("provenance", "read from"))
KERNEL_COLUMNS = (
    Column("vmcoreinfo_at", "VMCOREINFO at"),
    Column("release", "release"),
    Column("moved_by", "image moved by"),
    Column("paging_levels", "paging levels"),
    Column("shown", "shown"),
)
COMMAND_COLUMNS = (Column("name", "command"), Column("state", "state"), Column("reason", "because"))


class Lack(NamedTuple):
    """What a command cannot show if something is missing."""

    of: str
    state: str
    text: str


_NO_SYMBOLS = "there are no symbols"
_NO_TYPES = "there are no types"
_ZERO_PAGES = "zero pages cannot be distinguished from other pages"
_RESERVED = "the reserved end of the direct map"
#: What kernels may lack that do not name their variables, and what code and page tables may tell instead.
_PLACES, _BASES = "places of regions", "randomised bases"
#: The same for kernels without types: not all have something random inside their regions.
_DRAWS = "random places"
_FRAME_PLACES = "place of struct pages"
_NO_FRAME_PLACES = "the place of struct pages is not known"
#: Kinds of memory that must be readable before a command counts as working.
_TABLES, _DATA, _FRAMES = "page tables", "data", "struct pages"
_NO_TABLES = "the kernel's page tables cannot be read"
_NO_DATA = "the kernel's data cannot be read"
_NO_FRAMES = "struct pages cannot be read"
_CUT_OFF = "memory missing from the truncated file is shown as not in the dump"
#: By command: what it cannot do without symbols, without symbols of variables, and without types. Commands
#: without an entry work on any source. A filtered dump lacks none of these, because it keeps page tables and
#: the kernel's own data.
LACKS: Dict[str, Sequence[Lack]] = {
    "aliases": (
        Lack("symbols", "partly", "in the kernel half only addresses that the page tables map"),
        Lack(_PLACES, "partly", "none in regions whose place is not known"),
        Lack("types", "partly", "no processes"),
    ),
    "browse": (
        Lack("symbols", "partly", "as the commands that it shows"),
        Lack("variables", "partly", "as the commands that it shows"),
        Lack("types", "partly", "as the commands that it shows"),
        Lack(_RESERVED, "partly", "as the commands that it shows"),
    ),
    "check": (
        Lack("symbols", "partly", "rules about sections of the image need symbols"),
        Lack("variables", "partly", "rules about parts of the image, areas and CPUs need names of variables"),
        Lack("types", "partly", "rules about modules, processes and lists of the kernel need types"),
    ),
    "convert": (),
    "diff": (
        Lack("symbols", "partly", "only the layouts are compared"),
        Lack("variables", "partly", "only the layouts are compared"),
        Lack(
            "types", "partly", "no modules, no vmalloc areas; only the page types that VMCOREINFO describes"
        ),
    ),
    "explain": (
        Lack("symbols", "partly", "what a region is for, but nothing about this kernel"),
        Lack("variables", "partly", "what a region is for, and about this kernel only what layout shows"),
        Lack("types", "partly", "what a region is for, and about this kernel only what layout shows"),
    ),
    "identify": (
        Lack("symbols", "partly", "regions and page tables only"),
        Lack("variables", "partly", "no variables, no tasks, no slab objects"),
        Lack("types", "partly", "no tasks, no slab objects; vmalloc areas up to 6.8"),
    ),
    "info": (),
    "kaslr": (
        Lack("symbols", "partly", "the image's displacement only"),
        Lack(_BASES, "partly", "the number of possible places is not known for all bases"),
        Lack(_DRAWS, "partly", "random places inside the regions need types"),
        Lack(
            _RESERVED, "partly", "this kernel does not keep the number of possible places of its memory bases"
        ),
    ),
    "layout": (
        Lack("symbols", "partly", "bounds that are variables are not known"),
        Lack(_PLACES, "partly", "bounds that are variables, and firmware mappings, are not known"),
        Lack("types", "partly", "the bounds of the fixmap and the mappings of processes are not known"),
    ),
    "page": (
        Lack("symbols", "partly", _ZERO_PAGES),
        Lack("variables", "partly", _ZERO_PAGES),
        Lack("types", "partly", "no slab caches, files, cgroups and processes"),
        Lack(_FRAME_PLACES, "cannot", _NO_FRAME_PLACES),
    ),
    "pages": (
        Lack("symbols", "partly", _ZERO_PAGES),
        Lack("variables", "partly", _ZERO_PAGES),
        Lack("types", "partly", "only the types that VMCOREINFO describes; no page tables, no slab caches"),
        Lack(_FRAME_PLACES, "cannot", _NO_FRAME_PLACES),
    ),
    "ptdump": (Lack("types", "partly", "not the page tables of processes"),),
    "pte": (),
    "read": (
        Lack("symbols", "partly", "addresses as numbers only; values are identified by regions only"),
        Lack("variables", "partly", "variables cannot be given by name, and are not identified"),
        Lack("types", "partly", "no --type, no --pid; tasks and slab objects are not identified"),
    ),
    "report": (
        Lack("symbols", "partly", "as its parts"),
        Lack("variables", "partly", "as its parts"),
        Lack("types", "partly", "as its parts"),
        Lack(_RESERVED, "partly", "as its parts"),
    ),
    "search": (
        Lack("symbols", "partly", "values as numbers only; places are identified by regions only"),
        Lack("variables", "partly", "variables cannot be given by name, and are not identified"),
        Lack("types", "partly", "no --pid; tasks, slab objects and users of pages are not identified"),
    ),
    "shell": (
        Lack("symbols", "partly", "no symbols at the prompt"),
        Lack("variables", "partly", "variables have no names at the prompt"),
        Lack("types", "partly", "no types at the prompt"),
    ),
    "show": (
        Lack("symbols", "partly", "only memory sections and what the page tables map"),
        Lack("variables", "partly", "no parts of the image, no RAM by /proc/iomem, no EFI, no vsyscall"),
        Lack(
            "types",
            "partly",
            "only memory sections, bounds of vmalloc areas up to 6.8, and what the page tables map",
        ),
    ),
    "survey": (
        Lack("symbols", "partly", "as its parts"),
        Lack("variables", "partly", "as its parts"),
        Lack("types", "partly", "as its parts"),
        Lack(_RESERVED, "partly", "as its parts"),
    ),
    "translate": (
        Lack("symbols", "partly", "addresses as numbers only"),
        Lack("variables", "partly", "variables cannot be given by name"),
        Lack("types", "partly", "no --pid"),
    ),
    "user": (
        Lack("symbols", "cannot", _NO_SYMBOLS),
        Lack("variables", "partly", "it is not known whether there is a vsyscall page"),
        Lack("types", "cannot", _NO_TYPES),
    ),
}


#: Commands that do not read the kernel's memory, and those that read struct pages.
_WITHOUT_MEMORY = ("info", "pte")
_OF_FRAMES = ("check", "diff", "page", "pages", "report", "survey")


def _of_memory(name: str) -> Iterator[Lack]:
    """What a command cannot show if memory cannot be read."""
    if name in _WITHOUT_MEMORY or not LACKS[name]:
        return
    yield Lack(_TABLES, "partly", _NO_TABLES)
    yield Lack(_DATA, "partly", _NO_DATA)
    if name in _OF_FRAMES:
        yield Lack(_FRAMES, "partly", _NO_FRAMES)


def _readable(kernel: Kernel) -> Mapping[str, bool]:
    """Which kinds of memory are readable, tested at a few places that every kernel has."""

    def found(way: Callable[[], bool]) -> bool:
        try:
            return way()
        except Unavailable:
            return False

    def tables() -> bool:
        return kernel.walk(kernel.text.value).state == "mapped"

    def data() -> bool:
        # Never zeros, because the name of the system, "Linux", begins here.
        return any(kernel.read(kernel.number("SYMBOL(init_uts_ns)").value, _UTS_NAMESPACE))

    def frames() -> bool:
        place = kernel.locate("vmemmap")
        if not isinstance(place, Placement):
            return False
        size = kernel.page_struct_size.value
        frame = (kernel.text.value - kernel.image_offset.value & ALL) >> kernel.page_shift
        # The image's frames are reserved, so their flags are not zero.
        return any(kernel.read(kernel.facts.memory_map.value + frame * size & ALL, size))

    return {_TABLES: found(tables), _DATA: found(data), _FRAMES: found(frames)}


def info(kernel: Kernel, search: Search = in_silence) -> InfoReport:
    """Collect everything that is quick to find. Nothing here makes a report partial.

    :param search: watches the search for other kernels in the memory of the source.
    """
    looked = kernel.source.kernels(search) if kernel.source.kernels is not None else None
    rows = _kernel_rows(kernel, looked) if looked is not None else []
    missing, wrong = _missing(kernel)
    facts = [
        *_of_the_dump(kernel.source, missing),
        *kernel_facts(kernel),
        *_of_names_and_types(kernel, looked, len(rows)),
    ]
    alert = [wrong] if wrong else []
    notes = [*alert, *kernel.source.warnings]
    if len(rows) > 1:
        notes.append(f"{len(rows)} kernels are in this memory; --vmcoreinfo-at ADDR shows another one")
    return _report(kernel.identity, facts, rows, commands(kernel), alert, notes)


def _report(
    who: Optional[Identity],
    facts: Sequence[FactRow],
    kernels: Sequence[KernelRow],
    commands: Sequence[CommandRow],
    head: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> InfoReport:
    return Report(
        command="info",
        kernel=who,
        tables=(
            Table("facts", FACT_COLUMNS, facts),
            Table("kernels", KERNEL_COLUMNS, kernels, "kernels in this memory"),
            Table("commands", COMMAND_COLUMNS, commands, "what the commands can do with it"),
        ),
        head=head,
        notes=tuple(notes),
    )


def _kernel_rows(kernel: Kernel, looked: Kernels) -> List[KernelRow]:
    """The kernels that were found, including the shown one."""
    shown = identity_of(kernel.source.vmcoreinfo)
    rows = [
        _kernel_row(kernel.arch, found.lines, Address(found.address), identity_of(found.lines) == shown)
        for found in looked.found
    ]
    if not any(row.shown for row in rows):
        rows.insert(0, _kernel_row(kernel.arch, kernel.source.vmcoreinfo, None, True))
    return rows


def _kernel_row(
    arch: Architecture, lines: Mapping[str, str], address: Optional[Address], shown: bool
) -> KernelRow:
    levels = None
    with suppress(ValueError):
        levels = (by_vmcoreinfo(lines) or arch).address_space(lines).form.levels
    try:
        moved = Displacement(int(lines.get("KERNELOFFSET", ""), 16))
    except ValueError:
        moved = None
    return KernelRow(address, lines.get("OSRELEASE", ""), moved, levels, shown)


def _known(
    key: str, title: str, value: Optional[Union[str, int, bool]], provenance: str = "", reason: str = ""
) -> FactRow:
    if value is None:
        return FactRow(key, title, None, None, reason or "not known")
    return FactRow(key, title, value, provenance or None, None)


def _read(
    key: str, title: str, way: Callable[[], Fact[T]], shape: Callable[[T], Union[str, int, bool]] = str
) -> FactRow:
    try:
        fact = way()
        return FactRow(key, title, shape(fact.value), fact.provenance, None)
    except Unavailable as error:
        return FactRow(key, title, None, None, error.what)


def _of_the_dump(source: Source, missing: Sequence[FactRow]) -> Iterator[FactRow]:
    yield _known("source", "source", source.label)
    yield _known("format", "format", source.format)
    if source.packing:
        yield _known("packed", "packed with", source.packing)
    if source.writer:
        yield _known("written_by", "written by", source.writer)
    if source.size is not None:
        yield _known("size", "size of the file", Size(source.size))
    if source.memory is not None:
        yield _known("memory", "memory in it", Size(source.memory))
    elif source.kind == "core":
        yield _known("memory", "memory in it", None, reason="the dump is truncated")
    if source.kind == "core" and source.segments:
        yield _known("ranges", "where that memory is", _ranges(source.segments))
    if source.kind == "core":
        yield _known("complete", "complete", source.complete, reason="the format does not say")
        left_out = None if source.left_out is None else Size(source.left_out)
        cut = source.complete is False
        why = "the dump is truncated" if cut else "the format does not say"
        yield _known("left_out", "excluded when dumped", left_out, reason=why)
        yield from missing
    if source.eraseinfo:
        text = source.eraseinfo[:_MAX_ERASED].decode("utf-8", "replace")
        more = " ..." if len(source.eraseinfo) > _MAX_ERASED else ""
        yield _known("erased", "erased when dumped", ", ".join(text.split("\n")).strip(", \0") + more)


def info_of_other(dump: OtherDump) -> InfoReport:
    """What a dump says about itself, if kvintro does not know the page tables of its architecture."""
    why = f"kvintro does not know the page tables of {dump.arch.name} yet"
    facts = [*_of_the_dump(dump.source, []), *_of_the_other_kernel(dump)]
    commands = [
        CommandRow(name, "works" if name == "info" else "cannot", None if name == "info" else why)
        for name in LACKS
    ]
    return _report(
        None, facts, [], commands, notes=[*dump.source.warnings, f"{why}: no command reads its memory"]
    )


def _of_the_other_kernel(dump: OtherDump) -> Iterator[FactRow]:
    lines, note = dump.source.vmcoreinfo, "VMCOREINFO"
    yield _known("release", "release", lines.get("OSRELEASE"), note, dump.problem)
    lacks = dump.problem or "VMCOREINFO has none, as before Linux 5.9"
    yield _known("build_id", "build id", lines.get("BUILD-ID"), note, lacks)
    machine = dump.machine
    yield _known("arch", "architecture", machine or dump.arch.name, dump.known_from if machine else "")
    order = None if machine is None else _BYTE_ORDERS[dump.arch.orders[machine]]
    lacks = "init_uts_ns is not in the dump, and the file's header does not decide it"
    yield _known("byte_order", "byte order", order, dump.known_from, lacks)
    size = lines.get("PAGESIZE", "")
    page = Size(int(size)) if size in map(str, dump.arch.page_sizes) else None
    lacks = dump.problem or "VMCOREINFO has no valid PAGESIZE"
    yield _known("page_size", "page size", page, note, lacks)
    origin = dump.source.vmcoreinfo_origin or None
    yield _known("vmcoreinfo", "VMCOREINFO", origin, reason=dump.problem)


def _missing(kernel: Kernel) -> Tuple[List[FactRow], str]:
    """Facts about the pages that the dump lacks, and what shows that they were excluded by mistake, or ""."""
    try:
        found = excluded_from(kernel)
    except Unavailable as error:
        return [_known("excluded_types", "excluded by type", None, reason=error.what)], ""
    if found is None:
        return [], ""
    rows, shift = [], kernel.page_shift
    how = "" if found.whole else f"estimated from {found.looked_at} of {found.total} page frames"
    if found.pages:
        types = by_type(found.excluded, found.pages, shift) if found.excluded else None
        rows.append(_known("excluded_types", "excluded by type", types, how, "the sample has none of them"))
        level = found.level
        way = "the file says so" if level == found.recorded else "the lowest that excludes these types"
        rows.append(_known("filter_level", "level of makedumpfile", level, way, no_level(found)))
    if found.overlooked:
        pages = sum(found.overlooked.values()) * found.total // found.looked_at
        kept = by_type(found.overlooked, pages, shift)
        rows.append(_known("kept_types", f"kept despite -d {found.recorded}", kept, how))
    if found.lost is None or found.lost_pages:
        lost = by_type(found.lost, found.lost_pages, shift) if found.lost else None
        why = "the dump does not say" if found.lost is None else "the sample has none of them"
        rows.append(_known("lost_types", "truncated by type", lost, how, why))
    return rows, mistake(kernel, found)


def _ranges(segments: Sequence[Segment]) -> str:
    """Format physical memory as first and last addresses; everything else is a gap."""
    merged: List[List[int]] = []
    for start, end in sorted((s.paddr, s.paddr + s.filesz) for s in segments if s.filesz):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    more = f" and {len(merged) - _MAX_RANGES} more" if len(merged) > _MAX_RANGES else ""
    return ", ".join(f"{start:x}-{end - 1:x}" for start, end in merged[:_MAX_RANGES]) + more


def kernel_facts(kernel: Kernel) -> Iterator[FactRow]:
    """Facts about the kernel itself: its version, its clock, its panic."""
    source, who = kernel.source, kernel.identity
    note = "VMCOREINFO"
    yield _known("release", "release", who.release, note, "VMCOREINFO has no OSRELEASE")
    yield _read("version", "version", lambda: _banner(kernel))
    yield _known("build_id", "build id", who.build_id, note, "VMCOREINFO has none, as before Linux 5.9")
    yield _known("arch", "architecture", who.arch)
    yield _read("paging_levels", "paging levels", lambda: kernel.levels, int)
    where = "by the addresses of the regions" + (
        "; it moved the image only" if only_image_moved(kernel) else ""
    )
    yield _known("kaslr", "KASLR", who.kaslr, where, "the bases are not known")
    yield _read("image_slide", "image moved by", lambda: kernel.image_slide, Displacement)
    yield _read("pti", "page-table isolation", lambda: kernel.isolation, bool)
    yield _read("command_line", "command line", lambda: command_line(kernel))
    dumped, up = _optional(times.now, kernel), _optional(times.uptime, kernel)
    booted = None
    if isinstance(dumped, Fact) and isinstance(up, Fact):
        booted = _date(dumped.value - up.value)
    why = next((f for f in (dumped, up) if isinstance(f, str)), "")
    what = "now" if source.live else "dumped"
    yield _known("boot_time", "booted", booted, "timekeeper", why)
    at = _date(dumped.value) if isinstance(dumped, Fact) else None
    yield _known("dump_time", what, at, "timekeeper", why)
    yield _known("uptime", "uptime in seconds", up.value if isinstance(up, Fact) else None, "timekeeper", why)
    yield _panic(kernel)


def _panic(kernel: Kernel) -> FactRow:
    """The message of the panic; an empty string if there was none."""
    title = "panic"
    try:
        if not times.panicked(kernel).value:
            return _known("panic", title, "", "panic_cpu")
        message = times.panic_message(kernel)
    except Unavailable as error:
        return _known("panic", title, None, reason=error.what)
    return _known("panic", title, message.value, message.provenance)


def _optional(way: Callable[[Kernel], Fact[int]], kernel: Kernel) -> Union[Fact[int], str]:
    try:
        return way(kernel)
    except Unavailable as error:
        return error.what


def _date(seconds: int) -> Optional[str]:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return None


def _banner(kernel: Kernel) -> Fact[str]:
    # Do not read past the page in which it ends.
    address = kernel.symbol("linux_banner")
    page = kernel.form.page_size
    data = kernel.read(address, min(_BANNER, page - address % page))
    if b"\0" not in data and len(data) < _BANNER:
        data += kernel.read(address + len(data), _BANNER - len(data))
    text = data.split(b"\0")[0].decode("utf-8", "replace").strip()
    if not text:
        raise Unavailable("linux_banner is empty")
    return Fact(text, "linux_banner")


def _of_names_and_types(kernel: Kernel, looked: Optional[Kernels], count: int) -> Iterator[FactRow]:
    source = kernel.source
    yield _known("vmcoreinfo", "VMCOREINFO", source.vmcoreinfo_origin or None, reason="there is none")
    if looked is not None:
        how = "all of it" if looked.whole else f"{size_text(looked.looked_at)} of it"
        yield _known("kernel_count", "kernels in the memory", count, f"searched {how}")
    yield _known(
        "symbols",
        "symbols",
        None if source.symbols == "none" else source.symbols,
        "",
        _why(kernel, "symbols"),
    )
    if source.kallsyms is not None:
        yield _known("symbol_count", "symbols of the image", len(source.kallsyms))
    yield _known(
        "types", "types", None if source.types == "none" else source.types, "", _why(kernel, "types")
    )
    installed = kernel.prog.config.get("kvintro.types")
    if isinstance(installed, Installed) and installed.type_count:
        yield _known("type_count", "types of the image", installed.type_count)


def _why(kernel: Kernel, what: str) -> str:
    start = f"no {what}: "
    return next((w[len(start) :] for w in kernel.source.warnings if w.startswith(start)), "there are none")


def commands(kernel: Kernel) -> List[CommandRow]:
    """What each command can do with this source."""
    source = kernel.source
    here = {
        "symbols": source.symbols != "none",
        # Without CONFIG_KALLSYMS_ALL variables have no names.
        "variables": not kernel.code_only,
        _PLACES: not kernel.code_only
        or not any(isinstance(kernel.locate(region), Unknown) for region in kernel.regions),
        _FRAME_PLACES: isinstance(kernel.locate("vmemmap"), Placement),
        _BASES: not kernel.code_only or not kaslr(kernel).partial,
        "types": source.types != "none",
        _DRAWS: source.types != "none" or not kaslr(kernel).partial,
        # Kernels before 6.12, and stable ones before its backport, forgot it (readers/randomness.py).
        **_readable(kernel),
        _RESERVED: kernel.identity.kaslr is False
        or bases_are_fixed(kernel)
        or not kernel.regions.vmalloc.randomised(kernel)
        or any(map(kernel.find_symbol, ("direct_map_physmem_end", "physmem_end"))),
    }
    rows: List[CommandRow] = []
    for name, lacks in LACKS.items():
        missing = [lack for lack in (*lacks, *_of_memory(name)) if not here[lack.of]]
        state = "works"
        if missing:
            state = "cannot" if any(lack.state == "cannot" for lack in missing) else "partly"
        reasons = [lack.text for lack in missing if lack.state == state]
        if source.complete is False and lacks and state != "cannot":
            state = "partly"
            reasons.append(_CUT_OFF)
        rows.append(CommandRow(name, state, "; ".join(dict.fromkeys(reasons)) or None))
    return rows
