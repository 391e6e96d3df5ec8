# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything that is known about an address, most specific first.

drgn's own helpers answer where they are right: tasks, stacks, slab objects, vmalloc areas. What they do not
know is added: whether anything is mapped there at all, per-CPU variables, sections of modules, slots of
the fixmap, the image's freed parts.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import drgn

from kvintro.arch.x86_64 import ALL, CPU_ENTRY_AREA_BASE, FIXADDR_TOP, PAGE_SHIFT, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Address, Placement
from kvintro.queries.modules import ModuleMemory, module_memory, module_sections
from kvintro.queries.translate import Input, Translation, Translator
from kvintro.readers.kfence import KfencePool, cache_name, known_pool
from kvintro.readers.structures import Budget, Damage
from kvintro.regions.cpu_entry_area import areas_of, member_at
from kvintro.regions.vmalloc import bare_areas
from kvintro.regions.vmemmap import REGION as VMEMMAP

# What helpers raise on memory that is damaged, missing or laid out in a way they do not know.
_TROUBLE = (
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    OSError,
    NotImplementedError,
    drgn.FaultError,
)

#: Kinds, most specific first.
KINDS = (
    "task",
    "task_stack",
    "per_cpu",
    "struct_page",
    "symbol",
    "fixmap_slot",
    "kfence",
    "cpu_entry_area",
    "slab_object",
    "module_section",
    "module_memory",
    "init_section",
    "vmap_area",
    "region",
)

_MAX_CPUS = 1 << 13
_LONGEST_NAME = 256
# Seconds of looking by drgn's helpers, which can go in circles. Three are enough for 150,000 tasks; a dump
# may have been made to hold us up, and a running kernel was not.
_SECONDS, _SECONDS_LIVE, _SECONDS_EACH = 3.0, 60.0, 0.02


@dataclass(frozen=True)
class Identity:
    """One thing that an address is.

    :ivar kind: what it is: ``task``, ``symbol``, ``region`` and others (:data:`KINDS`).
    :ivar text: for people.
    :ivar start: where the thing begins, if it has a beginning.
    :ivar size: its bytes, if known.
    :ivar details: what is particular to the kind.
    """

    kind: str
    text: str
    start: Optional[Address] = None
    size: Optional[int] = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Identified:
    """All of them, with where the address lies; ``problems`` are look-ups that failed."""

    translation: Translation
    identities: Tuple[Identity, ...]
    problems: Tuple[str, ...]


class Identifier:
    """Answers for one kernel; keeps what it looked up for the next address."""

    def __init__(self, kernel: Kernel, translator: Translator) -> None:
        self.kernel = kernel
        self.translator = translator
        self._cache: Dict[Any, Any] = {}
        self._sections: Dict[int, List[Tuple[int, str]]] = {}
        self._budget = Budget(_SECONDS_LIVE if kernel.source.live else _SECONDS, _SECONDS_EACH)

    def identify(self, asked: Input) -> Identified:
        """One address."""
        self._budget.question()
        found = self.translator.translate(asked)
        address = found.virtual if found.virtual is not None else asked.value
        identities: List[Identity] = []
        problems: List[str] = []
        looks: Sequence[Callable[[int, Translation], Iterator[Identity]]] = (
            self._by_drgn,
            self._variable,
            self._per_cpu,
            self._kfence,
            self._struct_page,
            self._fixmap,
            self._entry_area,
            self._module,
            self._init,
            self._region,
        )
        if asked.form in ("physical", "pfn") and found.virtual is None:
            looks = ()
        for look in looks:
            try:
                identities.extend(look(address, found))
            except Unavailable as error:
                problems.append(error.what)
            except _TROUBLE as error:
                problems.append(f"{look.__name__.strip('_').replace('_', ' ')}: {self.kernel.why(error)}")
        if self._fence[1] and any(identity.kind == "slab_object" for identity in identities):
            problems.append(self._fence[1])
        identities.sort(key=lambda identity: KINDS.index(identity.kind))
        return Identified(found, tuple(identities), tuple(dict.fromkeys(problems)))

    def _by_drgn(self, address: int, found: Translation) -> Iterator[Identity]:
        symbol = self._symbol(address, found)
        if symbol is not None:
            yield symbol
        if self.kernel.source.types == "none":
            yield from self._bare_area(address, found)
            raise Unavailable("no types here: tasks, slab objects and vmalloc areas cannot be looked up")
        if address <= self.kernel.geometry.user.end or found.region == "vmemmap":
            return
        pool, _ = self._fence
        fenced = pool is not None and address in pool
        if pool is not None and fenced:
            behind = pool.object_at(address)
            if behind is None or behind.state != "allocated":
                return
        from drgn.helpers.common.memory import identify_address_all

        # With a cache all stacks are looked up at once; where one cannot be, the one asked for may still
        # be found by looking for it alone.
        for cache in (self._cache, None):
            found_here: List[Identity] = []
            try:
                with self._budget.bounded():
                    for thing in identify_address_all(self.kernel.prog, address, cache=cache):
                        made = _MAKERS.get(type(thing).__name__)
                        # A page of KFENCE's is no slab of the cache whose name it has.
                        if made is not None and not (fenced and made is _slab):
                            found_here.append(made(thing))
            except Exception as error:
                # On damaged memory it raises what it comes upon, plain Exception included.
                if cache is None or self._budget.spent:
                    yield from found_here
                    yield from self._area(address, found)
                    why = self.kernel.why(error)
                    raise Unavailable(f"what drgn knows of it cannot be read: {why}") from error
                continue
            yield from found_here
            return

    def _symbol(self, address: int, found: Translation) -> Optional[Identity]:
        if found.region not in ("kernel_image", "modules"):
            return None
        try:
            symbol = self.kernel.prog.symbol(address)
        except LookupError:
            return None
        offset = address - symbol.address
        text = f"symbol: {symbol.name}+{offset:#x}"
        if found.state == "unmapped":
            text += " (nothing is mapped there now)"
        return Identity(
            "symbol",
            text,
            Address(symbol.address),
            symbol.size or None,
            {"name": symbol.name, "offset": offset},
        )

    @cached_property
    def _fence(self) -> Tuple[Optional[KfencePool], str]:
        return known_pool(self.kernel)

    def _kfence(self, address: int, found: Translation) -> Iterator[Identity]:
        pool, _ = self._fence
        if pool is None or address not in pool:
            return
        page = pool.object_at(address)
        if page is None:
            yield Identity("kfence", "KFENCE guard page", details={"object": None})
            return
        details: Dict[str, Any] = {"object": page.number, "state": page.state}
        if page.state == "unused":
            yield Identity("kfence", f"KFENCE object {page.number}, not used yet", details=details)
            return
        offset = address - page.address
        details.update(cache=cache_name(self.kernel, page.cache), offset=offset)
        text = f"KFENCE object {page.number}, {page.state}: {details['cache'] or 'a cache without a name'}"
        text += f"{offset:+#x}" if 0 <= offset < page.size else f", outside of its {page.size} bytes"
        yield Identity("kfence", text, Address(page.address), page.size, details)

    def _area(self, address: int, found: Translation) -> Iterator[Identity]:
        """The vmalloc area alone: where variables have no names, drgn stops at those that tell of stacks."""
        if not self.kernel.code_only or found.region not in ("vmalloc", "modules"):
            return
        from drgn.helpers.linux.common import IdentifiedVmap
        from drgn.helpers.linux.mm import find_vmap_area

        with contextlib.suppress(Unavailable, *_TROUBLE), self._budget.bounded():
            area = find_vmap_area(self.kernel.prog, address)
            if area and area.vm:
                yield _vmap(IdentifiedVmap(address, area, area.vm.read_()))

    def _bare_area(self, address: int, found: Translation) -> Iterator[Identity]:
        """The bounds of the vmalloc area, where there are no types."""
        place = self.kernel.locate("vmalloc")
        if found.region not in ("vmalloc", "modules") or not isinstance(place, Placement):
            return
        with contextlib.suppress(Unavailable):
            for row in bare_areas(self.kernel, place.range, Damage()):
                if row.start <= address <= row.end:
                    text = f"vmap: {row.start:#x}-{row.end + 1:#x}"
                    details = {"caller": None, "offset": address - row.start}
                    yield Identity("vmap_area", text, row.start, row.size, details)

    def _variable(self, address: int, found: Translation) -> Iterator[Identity]:
        """That one is not known where variables have no names; those that have, are symbols."""
        if self.kernel.code_only and found.region == "kernel_image" and self._symbol(address, found) is None:
            raise Unavailable("which variable it belongs to is not known, as variables have no names here")
        yield from ()

    # Per-CPU variables

    @cached_property
    def _units(self) -> Tuple[Tuple[int, ...], int, int, int]:
        """(offset of each CPU, first and last+1 address of the variables' template, size of a unit)."""
        kernel = self.kernel
        start, end = kernel.symbol("__per_cpu_start"), kernel.symbol("__per_cpu_end")
        count = kernel.value("nr_cpu_ids", 4).value
        if not 0 < count <= _MAX_CPUS:
            raise Unavailable(f"nr_cpu_ids is {count}, which makes no sense")
        data = kernel.read(kernel.symbol("__per_cpu_offset"), 8 * count)
        offsets = tuple(int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(count))
        try:
            unit = kernel.value("pcpu_unit_size", 4).value
        except Unavailable:
            unit = end - start
        return offsets, start, end, max(unit, end - start)

    @cached_property
    def _variables(self) -> List[Tuple[int, str]]:
        """Per-CPU variables by the address that their symbols have, ascending; of aliases the last one."""
        _, start, end, _ = self._units
        if self.kernel.source.kallsyms is None:
            symbols = self.kernel.prog.symbols()
            return sorted((s.address, s.name) for s in symbols if start <= s.address < end)
        # An ordered table, in which they come first before 6.15; none is looked up by such an address.
        found: List[Tuple[int, str]] = []
        for symbol in self.kernel.source.kallsyms:
            if symbol.address >= end:
                break
            if symbol.address >= start and symbol.name not in ("__per_cpu_start", "fixed_percpu_data"):
                found.append((symbol.address, symbol.name))
        return found

    def _per_cpu(self, address: int, found: Translation) -> Iterator[Identity]:
        if found.region not in ("direct_map", "vmalloc") or self.kernel.source.symbols == "none":
            return
        offsets, start, end, unit = self._units
        for cpu, offset in enumerate(offsets):
            inside = address - (start + offset) & ALL
            if inside >= unit:
                continue
            details: Dict[str, Any] = {"cpu": cpu, "name": None, "offset": inside}
            if start + inside >= end:
                yield Identity(
                    "per_cpu", f"per-CPU memory of CPU {cpu}, dynamic, +{inside:#x}", details=details
                )
                return
            at = bisect_right(self._variables, (start + inside, "\x7f")) - 1
            if at < 0:
                yield Identity("per_cpu", f"per-CPU memory of CPU {cpu}, +{inside:#x}", details=details)
                return
            symbol, name = self._variables[at]
            into = start + inside - symbol
            details.update(name=name, offset=into)
            text = f"per-CPU variable: {name}+{into:#x} of CPU {cpu}"
            yield Identity("per_cpu", text, Address(symbol + offset & ALL), None, details)
            return

    # Pages, slots, modules

    def _struct_page(self, address: int, found: Translation) -> Iterator[Identity]:
        if self.translator.places.at(address) is not VMEMMAP:
            return
        base, size, count = VMEMMAP.pages(self.kernel)
        pfn, inside = divmod(address - base, size)
        if self.kernel.walk(address).state == "unmapped" or pfn >= count:
            yield Identity(
                "struct_page", f"no struct page: page frame {pfn:#x} has none", details={"pfn": None}
            )
            return
        text = f"struct page: page frame {pfn:#x}, physical {pfn << PAGE_SHIFT:016x}"
        text += f" +{inside:#x}" if inside else ""
        yield Identity("struct_page", text, Address(base + pfn * size), size, {"pfn": pfn, "offset": inside})

    @cached_property
    def _slots(self) -> List[Tuple[int, str]]:
        """Slots of the fixmap by number, ascending; the names of bounds are left out."""
        enum = self.kernel.prog.type("enum fixed_addresses")
        found: Dict[int, str] = {}
        for enumerator in enum.enumerators or ():
            if not enumerator.name.startswith("__end_of"):
                found.setdefault(int(enumerator.value), enumerator.name)
        return sorted(found.items())

    def _fixmap(self, address: int, found: Translation) -> Iterator[Identity]:
        if found.region not in ("fixmap", "vsyscall"):
            return
        slot = (FIXADDR_TOP + 0xFFF - address) >> PAGE_SHIFT
        at = bisect_right(self._slots, (slot, "\x7f")) - 1
        if at < 0:
            return
        number, name = self._slots[at]
        text = f"fixmap slot {slot}: {name}" + (f"+{slot - number}" if slot > number else "")
        start = Address(FIXADDR_TOP - (slot << PAGE_SHIFT))
        yield Identity("fixmap_slot", text, start, 1 << PAGE_SHIFT, {"slot": slot, "name": name})

    @cached_property
    def _areas(self) -> Tuple[List[Tuple[int, int]], Damage]:
        """(address, CPU) of every CPU's cpu_entry_area, ascending; and which cannot be found."""
        damage = Damage()
        return sorted((start, cpu) for cpu, _, start in areas_of(self.kernel, damage)), damage

    def _entry_area(self, address: int, found: Translation) -> Iterator[Identity]:
        if found.region != "cpu_entry_area" or self.kernel.source.types == "none":
            return
        if address < CPU_ENTRY_AREA_BASE + PAGE_SIZE:
            member: Optional[Tuple[str, int, int]] = ("IDT", CPU_ENTRY_AREA_BASE, PAGE_SIZE)
            cpu, whose = None, "all CPUs"
        else:
            areas, damage = self._areas
            at = bisect_right(areas, (address, ALL)) - 1
            start, cpu = areas[at] if at >= 0 else (address, None)
            member, whose = member_at(self.kernel, start, address) if at >= 0 else None, f"CPU {cpu}"
            if member is None and damage:
                raise Unavailable(f"cpu_entry_area: {damage.notes[0]}")
        if member is None:
            return
        name, start, size = member
        offset = address - start
        text = f"cpu_entry_area of {whose}: {name} +{offset:#x}"
        details = {"cpu": cpu, "member": name, "offset": offset}
        yield Identity("cpu_entry_area", text, Address(start), size, details)

    @cached_property
    def _modules(self) -> List[ModuleMemory]:
        return module_memory(self.kernel)

    def _module(self, address: int, found: Translation) -> Iterator[Identity]:
        if found.region not in ("modules", "vmalloc") or self.kernel.source.types == "none":
            return
        at = bisect_right(self._modules, ModuleMemory(address, ALL, "", "")) - 1
        if at < 0 or address > self._modules[at].end:
            return
        piece = self._modules[at]
        offset = address - piece.start
        text = f"module {piece.module}: {piece.kind} +{offset:#x}"
        details = {"module": piece.module, "memory": piece.kind, "offset": offset}
        yield Identity("module_memory", text, Address(piece.start), piece.end - piece.start + 1, details)
        if piece.descriptor not in self._sections:
            self._sections[piece.descriptor] = module_sections(self.kernel, piece.descriptor)
        sections = self._sections[piece.descriptor]
        at = bisect_right(sections, (address, "\x7f")) - 1
        # A section of another piece ends with that piece; where else one ends is not kept.
        if at >= 0 and sections[at][0] >= piece.start:
            start, name = sections[at]
            yield Identity(
                "module_section",
                f"module {piece.module}: section {name} +{address - start:#x}",
                Address(start),
                None,
                {"module": piece.module, "section": name, "offset": address - start},
            )

    def _init(self, address: int, found: Translation) -> Iterator[Identity]:
        if found.region != "kernel_image":
            return
        start, end = self.kernel.find_symbol("__init_begin"), self.kernel.find_symbol("__init_end")
        if start is None or end is None or not start <= address < end:
            return
        yield Identity(
            "init_section", "__init section, freed once the kernel is up", Address(start), end - start
        )

    def _region(self, address: int, found: Translation) -> Iterator[Identity]:
        region = self.translator.places.at(address)
        if region is None:
            yield Identity("region", "unused address space", details={"key": "hole"})
            return
        at = bisect_right(self.translator.places.starts, address) - 1
        start = self.translator.places.starts[at]
        yield Identity(
            "region", f"{region.name} +{address - start:#x}", Address(start), None, {"key": region.key}
        )


def _task(thing: Any) -> Identity:
    task = thing.task
    details = {"pid": task.pid.value_(), "comm": os.fsdecode(task.comm.string_())}
    return Identity("task", str(thing), Address(task.value_()), None, details)


def _stack(thing: Any) -> Identity:
    task = thing.task
    details = {"pid": task.pid.value_(), "comm": os.fsdecode(task.comm.string_())}
    start = task.stack.value_()
    return Identity(
        "task_stack", str(thing), Address(start), None, {**details, "offset": thing.address - start}
    )


def _slab(thing: Any) -> Identity:
    info = thing.slab_object_info
    # Not str(thing): that reads the name to its end, wherever it is.
    name = info.slab_cache.prog_.read_c_string(info.slab_cache.name.value_(), max_size=_LONGEST_NAME)
    cache = os.fsdecode(name)
    details = {"cache": cache, "allocated": info.allocated, "offset": thing.address - info.address}
    size = info.slab_cache.object_size.value_()
    state = {True: "", False: "free ", None: "corrupted "}[info.allocated]
    text = f"{state}slab object: {cache}+{details['offset']:#x}"
    return Identity("slab_object", text, Address(info.address), size, details)


def _vmap(thing: Any) -> Identity:
    start, end = thing.vmap_area.va_start.value_(), thing.vmap_area.va_end.value_()
    caller = Address(thing.vm_struct.caller.value_())
    details = {"caller": caller, "offset": thing.address - start}
    return Identity("vmap_area", str(thing), Address(start), end - start, details)


_MAKERS: Mapping[str, Callable[[Any], Identity]] = {
    "IdentifiedTaskStruct": _task,
    "IdentifiedTaskStack": _stack,
    "IdentifiedSlabObject": _slab,
    "IdentifiedVmap": _vmap,
}
