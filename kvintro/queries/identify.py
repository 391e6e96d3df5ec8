# SPDX-License-Identifier: LGPL-2.1-or-later
"""Identities of an address, most specific first.

drgn's own helpers are used where they are right: tasks, stacks, slab objects, vmalloc areas. This adds what
they do not know: whether anything is mapped there at all, per-CPU variables, sections of modules, slots of
the fixmap, freed parts of the image.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import drgn

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Region, Trait
from kvintro.model import ALL, Address, Placement, Thing
from kvintro.queries.constants import constants
from kvintro.queries.modules import ModuleMemory, module_memory, module_sections
from kvintro.queries.placements import HOLE
from kvintro.queries.translate import Input, Translation, Translator
from kvintro.readers.bounds import Budget
from kvintro.readers.cpus import per_cpu_unit_size
from kvintro.readers.damage import Damage
from kvintro.readers.kfence import KfencePool, cache_name, known_pool
from kvintro.readers.processes import find_process, mm_of, processes
from kvintro.readers.structures import offset_of, type_of
from kvintro.readers.vmas import Vma, vmas_of
from kvintro.regions.vmalloc import AreaRow, Areas, bare_areas
from kvintro.regions.vmemmap import REGION as VMEMMAP

# Exceptions of helpers for memory that is damaged, missing or has an unknown layout.
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

#: Kinds, most specific first. Kinds of regions come before slab objects.
KINDS = (
    "error_value",
    "poison",
    "stack_canary",
    "task",
    "task_stack",
    "per_cpu",
    "struct_page",
    "symbol",
    "alias",
    "memory_area",
    "fixmap_slot",
    "kfence",
    "slab_object",
    "module_section",
    "module_memory",
    "init_section",
    "vmap_area",
    "freed_init",
    "one_bit_off",
    "region",
)

_RANKS: Mapping[str, float] = {kind: rank for rank, kind in enumerate(KINDS)}
_MAX_CPUS = 1 << 13
_LONGEST_NAME = 256
_MOST_WORDS = 1 << 16  # maximum number of words whose identity is cached
# Time limits in seconds for drgn's helpers, which can go in circles. Three are enough for 150,000 tasks. A
# dump may be made to waste time; a running kernel is not.
_SECONDS, _SECONDS_LIVE, _SECONDS_EACH = 3.0, 60.0, 0.02


@dataclass(frozen=True)
class Identified:
    """All identities of an address, with its translation; ``problems`` are lookups that failed."""

    translation: Translation
    identities: Tuple[Thing, ...]
    problems: Tuple[str, ...]


class Identifier:
    """Identifies addresses of one kernel, and caches lookups for the next address."""

    def __init__(self, kernel: Kernel, translator: Translator) -> None:
        self.kernel = kernel
        self.translator = translator
        self._cache: Dict[Any, Any] = {}
        self._sections: Dict[int, List[Tuple[int, str]]] = {}
        self._finders: Dict[str, Callable[[int], Iterable[Thing]]] = {}
        self._words: Dict[int, Optional[Thing]] = {}
        self._budget = Budget(_SECONDS_LIVE if kernel.source.live else _SECONDS, _SECONDS_EACH)

    def identify(self, asked: Input) -> Identified:
        """Identify one address."""
        self._budget.question()
        found = self.translator.translate(asked)
        address = found.virtual if found.virtual is not None else asked.value
        identities: List[Thing] = [*constants(asked.value)] if asked.form == "virtual" else []
        if asked.removed and not asked.removed & (asked.removed - 1):
            # A tag or a signature can be one bit, but a flipped bit is as likely.
            identities.append(self._off_by(asked.removed.bit_length() - 1, address))
        problems: List[str] = []
        looks: Sequence[Callable[[int, Translation], Iterable[Thing]]] = (
            self._by_drgn,
            self._variable,
            self._per_cpu,
            self._kfence,
            self._struct_page,
            self._fixmap,
            self._inside,
            self._module,
            self._init,
            self._alias,
            self._memory_area,
            self._canary,
            self._one_bit_off,
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
        identities.sort(key=lambda thing: _RANKS.get(thing.kind, _RANKS["slab_object"] - 0.5))
        return Identified(found, tuple(identities), tuple(dict.fromkeys(problems)))

    def of_word(self, value: int) -> Optional[Thing]:
        """The most specific identity of a word of memory, if the word is interpreted as an address.

        :param value: eight bytes of memory as a number.
        :return: None for plain data: a value that is not an address, or is in an unused range.
        """
        if value not in self._words:
            if len(self._words) >= _MOST_WORDS:
                self._words.clear()
            self._words[value] = self._of_word(value)
        return self._words[value]

    def _of_word(self, value: int) -> Optional[Thing]:
        form = self.kernel.form
        known = next(constants(value), None)
        if known is not None:
            return known
        if value not in form.kernel and (self.translator.pid is None or value not in form.user):
            # A stack canary begins with a zero byte.
            if value & 0xFF or form.is_canonical(value):
                return None
            with contextlib.suppress(Unavailable, *_TROUBLE):
                return next(iter(self._canary(value, self.translator.translate(_as_address(value)))), None)
            return None
        found = self.identify(_as_address(value))
        thing = next(iter(found.identities), None)
        if thing is None or thing.kind != "region":
            return thing
        if thing.details.get("key") == HOLE or value in form.user:
            return None
        if found.translation.state == "mapped":
            return thing
        return replace(thing, text=f"{thing.text} ({found.translation.state.replace('-', ' ')})")

    def _region_of(self, address: int, found: Translation) -> Optional[Region]:
        """Region of the address, None if it is not an address."""
        return None if found.region is None else self.translator.places.at(address)

    def _lies_in(self, trait: Trait, address: int, found: Translation) -> bool:
        region = self._region_of(address, found)
        return region is not None and trait in region.traits

    def _by_drgn(self, address: int, found: Translation) -> Iterator[Thing]:
        symbol = self._symbol(address, found)
        if symbol is not None:
            yield symbol
        if self.kernel.source.types == "none":
            yield from self._bare_area(address, found)
            raise Unavailable("no types here: tasks, slab objects and vmalloc areas cannot be looked up")
        regions = self.kernel.regions
        if address in self.kernel.form.user or self._region_of(address, found) is regions.vmemmap:
            return
        pool, _ = self._fence
        fenced = pool is not None and address in pool
        if pool is not None and fenced:
            behind = pool.object_at(address)
            if behind is None or behind.state != "allocated":
                return
        from drgn.helpers.common.memory import identify_address_all

        # With a cache, drgn looks up all stacks at once. If one of them fails, the requested one may still be
        # found on its own.
        for cache in (self._cache, None):
            found_here: List[Thing] = []
            try:
                with self._budget.bounded():
                    for thing in identify_address_all(self.kernel.prog, address, cache=cache):
                        made = _MAKERS.get(type(thing).__name__)
                        # A page of KFENCE names a cache but is not a slab of it.
                        if made is not None and not (fenced and made is _slab):
                            found_here.append(made(thing))
            except Exception as error:
                # On damaged memory drgn raises all kinds of exceptions, including plain Exception.
                if cache is None or self._budget.spent:
                    yield from found_here
                    yield from self._area(address, found)
                    why = self.kernel.why(error)
                    raise Unavailable(f"drgn cannot identify it: {why}") from error
                continue
            yield from found_here
            return

    def _symbol(self, address: int, found: Translation) -> Optional[Thing]:
        if not self._lies_in(Trait.SYMBOLS, address, found):
            return None
        try:
            symbol = self.kernel.prog.symbol(address)
        except LookupError:
            return None
        offset = address - symbol.address
        text = f"symbol: {symbol.name}+{offset:#x}"
        if found.state == "unmapped":
            text += " (nothing is mapped there now)"
        return Thing(
            "symbol",
            text,
            Address(symbol.address),
            symbol.size or None,
            {"name": symbol.name, "offset": offset},
        )

    @cached_property
    def _fence(self) -> Tuple[Optional[KfencePool], str]:
        return known_pool(self.kernel)

    def _kfence(self, address: int, found: Translation) -> Iterator[Thing]:
        pool, _ = self._fence
        if pool is None or address not in pool:
            return
        page = pool.object_at(address)
        if page is None:
            yield Thing("kfence", "KFENCE guard page", details={"object": None})
            return
        details: Dict[str, Any] = {"object": page.number, "state": page.state}
        if page.state == "unused":
            yield Thing("kfence", f"KFENCE object {page.number}, not used yet", details=details)
            return
        offset = address - page.address
        details.update(cache=cache_name(self.kernel, page.cache), offset=offset)
        text = f"KFENCE object {page.number}, {page.state}: {details['cache'] or 'a cache without a name'}"
        text += f"{offset:+#x}" if 0 <= offset < page.size else f", outside of its {page.size} bytes"
        yield Thing("kfence", text, Address(page.address), page.size, details)

    def _area(self, address: int, found: Translation) -> Iterator[Thing]:
        """The vmalloc area alone. Without names of variables, drgn fails earlier, at those for stacks."""
        if not self.kernel.code_only or not self._lies_in(Trait.AREAS, address, found):
            return
        from drgn.helpers.linux.common import IdentifiedVmap
        from drgn.helpers.linux.mm import find_vmap_area

        with contextlib.suppress(Unavailable, *_TROUBLE), self._budget.bounded():
            try:
                area = find_vmap_area(self.kernel.prog, address)
            except LookupError:
                # The tree has no name, but VMCOREINFO may have the list.
                yield from self._listed_area(address)
                return
            if area and area.vm:
                yield _vmap(IdentifiedVmap(address, area, area.vm.read_()))

    @cached_property
    def _listed_areas(self) -> Sequence[AreaRow]:
        place = self.kernel.locate("vmalloc")
        return list(Areas(self.kernel, place.range, Damage()).busy()) if isinstance(place, Placement) else []

    def _listed_area(self, address: int) -> Iterator[Thing]:
        for row in self._listed_areas:
            if row.start <= address <= row.end:
                text = f"vmap: {row.start:#x}-{row.end + 1:#x} caller {row.caller}"
                details = {"caller": None, "offset": address - row.start}
                yield Thing("vmap_area", text, row.start, row.size, details)

    def _bare_area(self, address: int, found: Translation) -> Iterator[Thing]:
        """Bounds of the vmalloc area, for sources without types."""
        place = self.kernel.locate("vmalloc")
        if not self._lies_in(Trait.AREAS, address, found) or not isinstance(place, Placement):
            return
        with contextlib.suppress(Unavailable):
            for row in bare_areas(self.kernel, place.range, Damage()):
                if row.start <= address <= row.end:
                    text = f"vmap: {row.start:#x}-{row.end + 1:#x}"
                    details = {"caller": None, "offset": address - row.start}
                    yield Thing("vmap_area", text, row.start, row.size, details)

    def _variable(self, address: int, found: Translation) -> Iterator[Thing]:
        """Report an unknown variable if variables have no names. Variables with names are symbols."""
        image = self._region_of(address, found) is self.kernel.regions.kernel_image
        if self.kernel.code_only and image and self._symbol(address, found) is None:
            raise Unavailable("its variable is unknown: the symbols of this kernel do not name variables")
        yield from ()

    # Per-CPU variables

    @cached_property
    def _units(self) -> Tuple[Tuple[int, ...], int, int, int]:
        """(offset of each CPU, start and exclusive end of the template, bytes that each CPU has)."""
        kernel = self.kernel
        start, end = kernel.symbol("__per_cpu_start"), kernel.symbol("__per_cpu_end")
        count = kernel.value("nr_cpu_ids", 4).value
        if not 0 < count <= _MAX_CPUS:
            raise Unavailable(f"nr_cpu_ids is {count}, which cannot be right")
        data = kernel.read(kernel.symbol("__per_cpu_offset"), 8 * count)
        offsets = tuple(int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(count))
        try:
            unit = per_cpu_unit_size(kernel)
        except Unavailable:
            unit = end - start
        return offsets, start, end, max(unit, end - start)

    @cached_property
    def _variables(self) -> List[Tuple[int, str]]:
        """Per-CPU variables by their symbols' addresses, ascending; the last one of aliases."""
        _, start, end, _ = self._units
        if self.kernel.source.kallsyms is None:
            symbols = self.kernel.prog.symbols()
            return sorted((s.address, s.name) for s in symbols if start <= s.address < end)
        # The table is sorted; before 6.15 it begins with per-CPU symbols. No lookup uses their addresses.
        found: List[Tuple[int, str]] = []
        for symbol in self.kernel.source.kallsyms:
            if symbol.address >= end:
                break
            if symbol.address >= start and symbol.name not in ("__per_cpu_start", "fixed_percpu_data"):
                found.append((symbol.address, symbol.name))
        return found

    def _per_cpu(self, address: int, found: Translation) -> Iterator[Thing]:
        if self.kernel.source.symbols == "none" or not self._lies_in(Trait.PER_CPU, address, found):
            return
        offsets, start, end, unit = self._units
        for cpu, offset in enumerate(offsets):
            inside = address - (start + offset) & ALL
            if inside >= unit:
                continue
            details: Dict[str, Any] = {"cpu": cpu, "name": None, "offset": inside}
            if start + inside >= end:
                yield Thing("per_cpu", f"per-CPU memory of CPU {cpu}, dynamic, +{inside:#x}", details=details)
                return
            at = bisect_right(self._variables, (start + inside, "\x7f")) - 1
            if at < 0:
                yield Thing("per_cpu", f"per-CPU memory of CPU {cpu}, +{inside:#x}", details=details)
                return
            symbol, name = self._variables[at]
            into = start + inside - symbol
            details.update(name=name, offset=into)
            text = f"per-CPU variable: {name}+{into:#x} of CPU {cpu}"
            yield Thing("per_cpu", text, Address(symbol + offset & ALL), None, details)
            return

    # Pages, slots, modules

    def _struct_page(self, address: int, found: Translation) -> Iterator[Thing]:
        if self.translator.places.at(address) is not self.kernel.regions.vmemmap:
            return
        base, size, count = VMEMMAP.pages(self.kernel)
        pfn, inside = divmod(address - base & ALL, size)
        if self.kernel.walk(address).state == "unmapped" or pfn >= count:
            yield Thing("struct_page", f"page frame {pfn:#x} has no struct page", details={"pfn": None})
            return
        text = f"struct page: page frame {pfn:#x}, physical {pfn << self.kernel.page_shift:016x}"
        text += f" +{inside:#x}" if inside else ""
        yield Thing(
            "struct_page", text, Address(base + pfn * size & ALL), size, {"pfn": pfn, "offset": inside}
        )

    @cached_property
    def _slots(self) -> List[Tuple[int, str]]:
        """Slots of the fixmap by number, ascending, without the names of bounds."""
        enum = self.kernel.prog.type("enum fixed_addresses")
        found: Dict[int, str] = {}
        for enumerator in enum.enumerators or ():
            if not enumerator.name.startswith("__end_of"):
                found.setdefault(int(enumerator.value), enumerator.name)
        return sorted(found.items())

    def _fixmap(self, address: int, found: Translation) -> Iterator[Thing]:
        if not self._lies_in(Trait.SLOTS, address, found):
            return
        top, shift = self.kernel.facts.fixmap_top, self.kernel.page_shift
        slot = (top + self.kernel.form.page_size - 1 - address) >> shift
        at = bisect_right(self._slots, (slot, "\x7f")) - 1
        if at < 0:
            return
        number, name = self._slots[at]
        text = f"fixmap slot {slot}: {name}" + (f"+{slot - number}" if slot > number else "")
        start = Address(top - (slot << shift))
        yield Thing("fixmap_slot", text, start, 1 << shift, {"slot": slot, "name": name})

    def _inside(self, address: int, found: Translation) -> Iterable[Thing]:
        """Identities that the region itself has for the address."""
        region = self._region_of(address, found)
        if region is None:
            return ()
        if region.key not in self._finders:
            self._finders[region.key] = region.finder(self.kernel)
        return self._finders[region.key](address)

    @cached_property
    def _modules(self) -> List[ModuleMemory]:
        return module_memory(self.kernel)

    def _module(self, address: int, found: Translation) -> Iterator[Thing]:
        if self.kernel.source.types == "none" or not self._lies_in(Trait.AREAS, address, found):
            return
        at = bisect_right(self._modules, ModuleMemory(address, ALL, "", "")) - 1
        if at < 0 or address > self._modules[at].end:
            return
        piece = self._modules[at]
        offset = address - piece.start
        text = f"module {piece.module}: {piece.kind} +{offset:#x}"
        details = {"module": piece.module, "memory": piece.kind, "offset": offset}
        yield Thing("module_memory", text, Address(piece.start), piece.end - piece.start + 1, details)
        if piece.descriptor not in self._sections:
            self._sections[piece.descriptor] = module_sections(self.kernel, piece.descriptor)
        sections = self._sections[piece.descriptor]
        at = bisect_right(sections, (address, "\x7f")) - 1
        # A section that starts before this piece is in another. The ends of sections are not recorded.
        if at >= 0 and sections[at][0] >= piece.start:
            start, name = sections[at]
            yield Thing(
                "module_section",
                f"module {piece.module}: section {name} +{address - start:#x}",
                Address(start),
                None,
                {"module": piece.module, "section": name, "offset": address - start},
            )

    def _init(self, address: int, found: Translation) -> Iterator[Thing]:
        if self._region_of(address, found) is not self.kernel.regions.kernel_image:
            return
        start, end = self.kernel.find_symbol("__init_begin"), self.kernel.find_symbol("__init_end")
        if start is None or end is None or not start <= address < end:
            return
        text = "__init section, which the kernel frees after boot"
        if found.state == "unmapped":
            text += " (freed: a pointer to this address is stale)"
        yield Thing("init_section", text, Address(start), end - start)

    def _alias(self, address: int, found: Translation) -> Iterator[Thing]:
        """The part of the image that an address of the direct map, or a struct page, refers to."""
        region = self._region_of(address, found)
        regions = self.kernel.regions
        if region is regions.vmemmap:
            base, size, _ = VMEMMAP.pages(self.kernel)
            physical = (address - base) // size << self.kernel.form.page_shift
            what = "struct page for"
        elif region is regions.direct_map and found.physical is not None:
            physical, what = found.physical, "direct map of"
        else:
            return
        image = physical + self.kernel.image_offset.value & ALL
        place = self.kernel.locate(regions.kernel_image)
        if not isinstance(place, Placement) or image not in (place.used or place.range):
            return
        walk = self.kernel.walk(image)
        if walk.physical != physical:
            start, end = self.kernel.find_symbol("__init_begin"), self.kernel.find_symbol("__init_end")
            if start is not None and end is not None and start <= image < end:
                yield Thing("freed_init", f"{what} memory that was the __init section before it was freed")
            return
        name = self.translator.symbol_at(image, regions.kernel_image.key) or f"{image:016x}"
        details = {"image": Address(image), "symbol": name}
        yield Thing("alias", f"{what} {name}", details=details)

    @cached_property
    def _vmas(self) -> Sequence[Vma]:
        process = find_process(self.kernel, self.translator.pid or 0)
        return vmas_of(self.kernel, process, mm_of(self.kernel, process), Damage())

    def _memory_area(self, address: int, found: Translation) -> Iterator[Thing]:
        if self.translator.pid is None or found.region is None or address not in self.kernel.form.user:
            return
        for vma in self._vmas:
            if vma.start <= address <= vma.end:
                name = vma.name or "anonymous memory"
                details = {"pid": self.translator.pid, "name": vma.name, "offset": address - vma.start}
                text = f"memory area of pid {self.translator.pid}: {name} +{address - vma.start:#x}"
                yield Thing("memory_area", text, Address(vma.start), vma.end - vma.start + 1, details)

    @cached_property
    def _canaries(self) -> Mapping[int, Tuple[int, str]]:
        """(pid, command) of all processes, by stack canary."""
        found: Dict[int, Tuple[int, str]] = {}
        if not type_of(self.kernel, "struct task_struct").has_member("stack_canary"):
            return found  # CONFIG_STACKPROTECTOR is off
        offset = offset_of(self.kernel, "struct task_struct", "stack_canary")
        with self._budget.bounded():
            for process in processes(self.kernel, Damage()):
                with contextlib.suppress(Unavailable):
                    data = self.kernel.read(process.task + offset, 8)
                    found.setdefault(
                        int.from_bytes(data, self.kernel.form.byte_order), (process.pid, process.comm)
                    )
        return found

    def _canary(self, address: int, found: Translation) -> Iterator[Thing]:
        """Stack canary, which begins with a zero byte (include/linux/random.h:CANARY_MASK)."""
        if found.state != "non-canonical" or self.kernel.source.types == "none":
            return
        whose = self._canaries.get(address)
        if whose is not None:
            text = f"stack canary of {whose[0]} ({whose[1]})"
            yield Thing("stack_canary", text, details={"pid": whose[0], "comm": whose[1]})

    def _one_bit_off(self, address: int, found: Translation) -> Iterator[Thing]:
        """Mapped addresses that differ from the value in one bit."""
        if found.state != "non-canonical":
            return
        for bit in range(64):
            near = address ^ 1 << bit
            if not self.kernel.form.is_canonical(near) or self.kernel.walk(near).physical is None:
                continue
            yield self._off_by(bit, near)

    def _off_by(self, bit: int, near: int) -> Thing:
        key = self.translator.places.key_at(near)
        name = self.translator.symbol_at(near, key)
        text = f"bit {bit} off from {near:016x}, which is mapped in {key}" + (f": {name}" if name else "")
        return Thing("one_bit_off", text, Address(near), None, {"bit": bit, "key": key, "symbol": name})

    def _region(self, address: int, found: Translation) -> Iterator[Thing]:
        region = self.translator.places.at(address)
        if region is None:
            yield Thing("region", "unused address space", details={"key": "hole"})
            return
        at = bisect_right(self.translator.places.starts, address) - 1
        start = self.translator.places.starts[at]
        yield Thing(
            "region", f"{region.name} +{address - start:#x}", Address(start), None, {"key": region.key}
        )


def _as_address(value: int) -> Input:
    return Input(f"{value:016x}", value, "virtual")


def _task(thing: Any) -> Thing:
    task = thing.task
    details = {"pid": task.pid.value_(), "comm": os.fsdecode(task.comm.string_())}
    return Thing("task", str(thing), Address(task.value_()), None, details)


def _stack(thing: Any) -> Thing:
    task = thing.task
    details = {"pid": task.pid.value_(), "comm": os.fsdecode(task.comm.string_())}
    start = task.stack.value_()
    return Thing("task_stack", str(thing), Address(start), None, {**details, "offset": thing.address - start})


def _slab(thing: Any) -> Thing:
    info = thing.slab_object_info
    # Do not use str(thing), which reads the name without a length limit.
    name = info.slab_cache.prog_.read_c_string(info.slab_cache.name.value_(), max_size=_LONGEST_NAME)
    cache = os.fsdecode(name)
    details = {"cache": cache, "allocated": info.allocated, "offset": thing.address - info.address}
    size = info.slab_cache.object_size.value_()
    state = {True: "", False: "free ", None: "corrupted "}[info.allocated]
    text = f"{state}slab object: {cache}+{details['offset']:#x}"
    return Thing("slab_object", text, Address(info.address), size, details)


def _vmap(thing: Any) -> Thing:
    start, end = thing.vmap_area.va_start.value_(), thing.vmap_area.va_end.value_()
    caller = Address(thing.vm_struct.caller.value_())
    details = {"caller": caller, "offset": thing.address - start}
    return Thing("vmap_area", str(thing), Address(start), end - start, details)


_MAKERS: Mapping[str, Callable[[Any], Thing]] = {
    "IdentifiedTaskStruct": _task,
    "IdentifiedTaskStack": _stack,
    "IdentifiedSlabObject": _slab,
    "IdentifiedVmap": _vmap,
}
