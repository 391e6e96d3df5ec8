# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which dump is this, what is there to read it with, and which commands can do with that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Union

from kvintro.arch.x86_64 import ALL, PAGE_SHIFT, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Address, Column, Displacement, Fact, Placement, Report, Size, Table
from kvintro.queries import times
from kvintro.queries.command_line import command_line
from kvintro.readers.randomness import bases_are_fixed
from kvintro.source.vmcoreinfo import Kernels, Search, identity_of, in_silence
from kvintro.text import size_text
from kvintro.types import Installed

_BANNER = 512  # linux_banner is shorter
_UTS_NAMESPACE = 64  # bytes of struct uts_namespace in which the first name begins


@dataclass(frozen=True)
class FactRow:
    """One thing that is known of the dump or its kernel; docs/info.md lists the keys.

    :ivar value: None where it is not known.
    :ivar provenance: where it was read.
    :ivar reason: why it is not known.
    """

    key: str
    title: str
    value: Optional[Union[str, int, bool]]
    provenance: Optional[str]
    reason: Optional[str]


@dataclass(frozen=True)
class KernelRow:
    """A kernel in the source's memory, by a VMCOREINFO that fits it.

    :ivar vmcoreinfo_at: its physical address, for ``--vmcoreinfo-at``; None if it was not found in memory.
    :ivar moved_by: how far KASLR moved the image, by its KERNELOFFSET.
    :ivar shown: whether it is the one that reports are about.
    """

    vmcoreinfo_at: Optional[Address]
    release: str
    moved_by: Optional[Displacement]
    paging_levels: int
    shown: bool


@dataclass(frozen=True)
class CommandRow:
    """What a command can do with this source.

    :ivar state: ``works``, ``partly`` or ``cannot``.
    """

    name: str
    state: str
    reason: Optional[str]


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
    """What a command misses where something is not there."""

    of: str
    state: str
    text: str


_NO_SYMBOLS = "there are no symbols"
_NO_TYPES = "there are no types"
_ZERO_PAGES = "which pages are the zero pages is not known"
_RESERVED = "the reserved end of the direct map"
#: Memory that is looked at before anything is said to work; where each lies is read elsewhere.
_TABLES, _DATA, _FRAMES = "page tables", "data", "struct pages"
_NO_TABLES = "the kernel's page tables cannot be read"
_NO_DATA = "the kernel's data cannot be read"
_NO_FRAMES = "struct pages cannot be read"
_CUT_OFF = "what the file has lost shows as not in the dump"
#: By command: what it cannot do without symbols, without those of variables, without types. Those that have
#: no entry work on any source. That a dump was filtered is none of these: page tables and the kernel's own
#: data are left in.
LACKS: Dict[str, Sequence[Lack]] = {
    "aliases": (
        Lack("symbols", "partly", "of the kernel half those that the page tables have"),
        Lack("variables", "partly", "none in regions whose place is not known"),
        Lack("types", "partly", "no processes"),
    ),
    "check": (
        Lack("symbols", "partly", "rules about sections of the image need symbols"),
        Lack("variables", "partly", "rules about parts of the image, areas and CPUs need names of variables"),
        Lack("types", "partly", "rules about modules, processes and lists of the kernel need types"),
    ),
    "diff": (
        Lack("symbols", "partly", "what the layouts do not tell is not compared"),
        Lack("variables", "partly", "what the layouts do not tell is not compared"),
        Lack("types", "partly", "no modules, no vmalloc areas; pages as far as VMCOREINFO tells them apart"),
    ),
    "explain": (
        Lack("symbols", "partly", "what a region is, but not how this kernel has it"),
        Lack("variables", "partly", "what a region is, and how this kernel has it as far as layout says"),
        Lack("types", "partly", "what a region is, and how this kernel has it as far as layout says"),
    ),
    "identify": (
        Lack("symbols", "partly", "regions and page tables only"),
        Lack("variables", "partly", "no variables, no tasks, no slab objects"),
        Lack("types", "partly", "no tasks, no slab objects; vmalloc areas up to 6.8"),
    ),
    "info": (),
    "kaslr": (
        Lack("symbols", "partly", "the image's displacement only"),
        Lack("variables", "partly", "out of how many places bases were drawn is not known of all"),
        Lack("types", "partly", "what is drawn inside the regions needs types"),
        Lack(_RESERVED, "partly", "out of how many places the memory bases were drawn is not kept"),
    ),
    "layout": (
        Lack("symbols", "partly", "bounds that are variables are not known"),
        Lack("variables", "partly", "bounds that are variables, and what firmware maps, are not known"),
        Lack("types", "partly", "the fixmap's own bounds and what processes map are not known"),
    ),
    "page": (
        Lack("symbols", "partly", _ZERO_PAGES),
        Lack("variables", "partly", _ZERO_PAGES),
        Lack("types", "partly", "no slab caches, files, cgroups and processes"),
    ),
    "pages": (
        Lack("symbols", "partly", _ZERO_PAGES),
        Lack("variables", "partly", _ZERO_PAGES),
        Lack("types", "partly", "what VMCOREINFO tells apart; no page tables, no slab caches"),
    ),
    "ptdump": (Lack("types", "partly", "not of processes"),),
    "pte": (),
    "report": (
        Lack("symbols", "partly", "as its parts"),
        Lack("variables", "partly", "as its parts"),
        Lack("types", "partly", "as its parts"),
        Lack(_RESERVED, "partly", "as its parts"),
    ),
    "shell": (
        Lack("symbols", "partly", "no symbols at the prompt"),
        Lack("variables", "partly", "variables have no names at the prompt"),
        Lack("types", "partly", "no types at the prompt"),
    ),
    "show": (
        Lack("symbols", "partly", "sections of memory, and what the page tables map"),
        Lack("variables", "partly", "no parts of the image, no RAM by /proc/iomem, no EFI, no vsyscall"),
        Lack(
            "types",
            "partly",
            "sections, bounds of vmalloc areas up to 6.8, and what the page tables map",
        ),
    ),
    "translate": (
        Lack("symbols", "partly", "addresses as numbers only"),
        Lack("variables", "partly", "no variables by their names"),
        Lack("types", "partly", "not by --pid"),
    ),
    "user": (
        Lack("symbols", "cannot", _NO_SYMBOLS),
        Lack("variables", "partly", "whether there is a vsyscall page is not known"),
        Lack("types", "cannot", _NO_TYPES),
    ),
}


#: Commands that do not read the kernel's memory, and those that read struct pages.
_WITHOUT_MEMORY = ("info", "pte")
_OF_FRAMES = ("check", "diff", "page", "pages", "report")


def _of_memory(name: str) -> Iterator[Lack]:
    """What a command misses where memory cannot be read."""
    if name in _WITHOUT_MEMORY or not LACKS[name]:
        return
    yield Lack(_TABLES, "partly", _NO_TABLES)
    yield Lack(_DATA, "partly", _NO_DATA)
    if name in _OF_FRAMES:
        yield Lack(_FRAMES, "partly", _NO_FRAMES)


def _readable(kernel: Kernel) -> Mapping[str, bool]:
    """Whether memory is there, by a few places that every kernel has and uses."""

    def found(way: Callable[[], bool]) -> bool:
        try:
            return way()
        except Unavailable:
            return False

    def tables() -> bool:
        return kernel.walk(kernel.text.value).state == "mapped"

    def data() -> bool:
        # Never zeros: the name of the system, "Linux", begins here.
        return any(kernel.read(kernel.number("SYMBOL(init_uts_ns)").value, _UTS_NAMESPACE))

    def frames() -> bool:
        place = kernel.locate("vmemmap")
        if not isinstance(place, Placement):
            return False
        size = kernel.page_struct_size.value
        frame = kernel.text.value - START_KERNEL_MAP + kernel.phys_base.value & ALL
        # The image's frames are reserved: their flags are not zero.
        return any(kernel.read(place.range.start + (frame >> PAGE_SHIFT) * size, size))

    return {_TABLES: found(tables), _DATA: found(data), _FRAMES: found(frames)}


def info(kernel: Kernel, search: Search = in_silence) -> Report:
    """All that can be said without looking far; nothing here makes a report partial.

    :param search: watches the search for other kernels in the source's memory.
    """
    looked = kernel.source.kernels(search) if kernel.source.kernels is not None else None
    rows = _kernel_rows(kernel, looked) if looked is not None else []
    facts = [
        *_of_the_dump(kernel),
        *_of_the_kernel(kernel),
        *_of_names_and_types(kernel, looked, len(rows)),
    ]
    notes = list(kernel.source.warnings)
    if len(rows) > 1:
        notes.append(f"{len(rows)} kernels are in this memory; --vmcoreinfo-at ADDR shows another one")
    return Report(
        command="info",
        kernel=kernel.identity,
        tables=(
            Table("facts", FACT_COLUMNS, facts),
            Table("kernels", KERNEL_COLUMNS, rows, "kernels in this memory"),
            Table("commands", COMMAND_COLUMNS, commands(kernel), "what the commands can do with it"),
        ),
        notes=tuple(notes),
    )


def _kernel_rows(kernel: Kernel, looked: Kernels) -> List[KernelRow]:
    """Those that were found, and the one that is shown if it was not among them."""
    shown = identity_of(kernel.source.vmcoreinfo)
    rows = [
        _kernel_row(found.lines, Address(found.address), identity_of(found.lines) == shown)
        for found in looked.found
    ]
    if not any(row.shown for row in rows):
        rows.insert(0, _kernel_row(kernel.source.vmcoreinfo, None, True))
    return rows


def _kernel_row(lines: Mapping[str, str], address: Optional[Address], shown: bool) -> KernelRow:
    levels = 5 if lines.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
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


def _read(key: str, title: str, way: Callable[[], Fact[Any]], shape: Callable[[Any], Any] = str) -> FactRow:
    try:
        fact = way()
        return FactRow(key, title, shape(fact.value), fact.provenance, None)
    except Unavailable as error:
        return FactRow(key, title, None, None, error.what)


def _of_the_dump(kernel: Kernel) -> Iterator[FactRow]:
    source = kernel.source
    yield _known("source", "source", source.label)
    yield _known("format", "format", source.format)
    if source.size is not None:
        yield _known("size", "size of the file", Size(source.size))
    if source.memory is not None:
        yield _known("memory", "memory in it", Size(source.memory))
    elif source.kind == "core":
        yield _known("memory", "memory in it", None, reason="the dump is truncated")
    if source.kind == "core":
        yield _known("complete", "complete", source.complete, reason="the format does not tell")
        left_out = None if source.left_out is None else Size(source.left_out)
        cut = source.complete is False
        why = "the dump is truncated" if cut else "the format does not tell"
        yield _known("left_out", "left out by its maker", left_out, reason=why)


def _of_the_kernel(kernel: Kernel) -> Iterator[FactRow]:
    source, who = kernel.source, kernel.identity
    note = "VMCOREINFO"
    yield _known("release", "release", who.release, note, "VMCOREINFO has no OSRELEASE")
    yield _read("version", "version", lambda: _banner(kernel))
    yield _known("build_id", "build id", who.build_id, note, "VMCOREINFO has none, as before Linux 5.9")
    yield _known("arch", "architecture", who.arch)
    yield _read("paging_levels", "paging levels", lambda: kernel.levels, int)
    yield _known("kaslr", "KASLR", who.kaslr, "where things lie", "the bases are not known")
    yield _read("image_slide", "image moved by", lambda: kernel.image_slide, Displacement)
    yield _read("pti", "page-table isolation", lambda: kernel.pti, bool)
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
    """The panic's message; without a panic an empty string."""
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
    # Never past the page that it ends in.
    address = kernel.symbol("linux_banner")
    data = kernel.read(address, min(_BANNER, 4096 - address % 4096))
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
        how = "all of it was" if looked.whole else f"{size_text(looked.looked_at)} of it were"
        yield _known("kernel_count", "kernels in the memory", count, f"{how} looked through")
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
        # They have no names without CONFIG_KALLSYMS_ALL.
        "variables": not kernel.code_only,
        "types": source.types != "none",
        # Kernels before 6.12, and stable ones before its backport, forgot it (readers/randomness.py).
        **_readable(kernel),
        _RESERVED: kernel.identity.kaslr is False
        or bases_are_fixed(kernel)
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
