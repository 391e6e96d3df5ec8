# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own text and data, and the window in which KASLR places them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.image import FREED, FREED_MAPPED, FREED_PARTLY, FREED_UNMAPPED
from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    ALL,
    Address,
    AddressRange,
    Asked,
    Column,
    Contents,
    Displacement,
    Linear,
    Located,
    Placement,
    Size,
    Table,
)
from kvintro.paging import MAPPED
from kvintro.readers.mapped import View, rights_text
from kvintro.readers.memory import debug_pagealloc
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


_REST = "rest of the last 2 MB"


@dataclass(frozen=True)
class SectionRow:
    """A part of the image.

    :ivar inside: name of the part that contains it, empty for the main parts.
    :ivar physical: physical address by the rule of the image.
    :ivar expected: rights that it should have; empty if nothing should be mapped.
    :ivar freed: whether its memory was given to the allocator after boot.
    """

    name: str
    inside: str
    start: Address
    end: Address
    size: Size
    physical: Address
    expected: str
    rights: Tuple[str, ...]
    mapped: Size
    pages: Mapping[str, int]
    freed: bool
    symbols: str
    problem: Optional[str]


_COLUMNS = (
    Column("name", "part"),
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("physical", "physical", spare=4),
    Column("expected", "should be", spare=2),
    Column("rights", "rights"),
    Column("pages", "pages", spare=3),
    Column("freed", "freed"),
    Column("problem", ""),
)


class KernelImage(Region):
    """The window in which the image may lie; the image fills a small part of it."""

    key = "kernel_image"
    row = 12
    name = "kernel image"
    macro = "__START_KERNEL_map"
    traits = Trait.SYMBOLS

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """``__pa()`` in the image. Modules may be above it; their addresses are not linear."""
        found = kernel.place(self)
        return Linear(found.used or found.range, kernel.image_offset.value)

    def claimed(self, kernel: Kernel, place: Placement) -> Optional[AddressRange]:
        # The rest of the image's own window is unmapped at boot (arch/x86/mm/init_64.c:cleanup_highmap).
        # Inside another region, the image claims only itself.
        return place.range if place.parent else place.used

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Parts of the image, with their actual and expected rights."""
        found = kernel.place(self)
        rows = sections(kernel)
        view = View.of(kernel, found.range.start, found.range.end)
        inner = [row for row in _inner(kernel, view) if row.size]
        mapped = view.stretch(found.range.start, found.range.end)
        covered = 0 if found.used is None else view.stretch(found.used.start, found.used.end).mapped
        notes = [f"{row.name}: {row.problem}" for row in rows if row.problem]
        if mapped.unreadable:
            notes.append(f"page tables of {mapped.unreadable} bytes are not in this source")
        if found.used is not None and mapped.mapped != covered:
            notes.append(f"{mapped.mapped - covered} bytes are mapped outside of the image")
        if kernel.code_only:
            notes.append(f"not all of its parts are known: {kernel.nameless('__end_rodata').what}")
        if not _is_running(kernel):
            notes.append("the kernel had not finished booting: nothing was freed and protected yet")
        executable = [
            (low, high)
            for low, high, key in view.parts(found.range.start, found.range.end)
            if key & MAPPED and rights_text(key)[1:3] == "wx"
        ]
        notes += [f"{low:016x}-{high:016x} is writable and executable" for low, high in executable[:5]]
        # Inside another region, the image has no window of its own.
        whole = found.used or (found.range if found.parent else None)
        totals = {
            "size": Size(0 if whole is None else whole.size),
            "mapped": Size(mapped.mapped),
            "freed": Size(sum(row.size for row in rows if row.freed)),
            "moved_by": Displacement(kernel.image_slide.value),
        }
        return Contents(
            (
                Table("sections", _COLUMNS, rows),
                Table("inner", _COLUMNS, inner, "parts of them"),
            ),
            totals,
            notes,
            partial=bool(mapped.unreadable) or kernel.code_only,
        )


def sections(kernel: Kernel) -> List[SectionRow]:
    """Main parts of the image, in order of address.

    :raises Unavailable: the source has no symbols.
    """
    place = kernel.place(REGION)
    view = View.of(kernel, place.range.start, place.range.end)
    running = _is_running(kernel)
    isolation = kernel.isolation.value
    unmapped = debug_pagealloc(kernel)
    rows: List[SectionRow] = []
    for part in kernel.arch.image_parts:
        freed = part.fate in (FREED, FREED_MAPPED, FREED_UNMAPPED)
        bounds = _bounds(kernel, part.first, part.last, whole_pages=freed, last_kept=part.last_kept)
        if bounds is None or any(row.name == part.name for row in rows):
            continue
        expected = part.rights
        if part.fate == FREED:
            # Freed parts become ordinary memory; under PTI they are unmapped (free_kernel_image_pages).
            expected = "?" if not running else "" if isolation or unmapped else "rw-"
        elif part.fate == FREED_UNMAPPED:
            expected = "" if running else "?"
        elif unmapped and part.fate in (FREED_MAPPED, FREED_PARTLY):
            expected = "?"
        symbols = f"{part.first} to {part.last}"
        rows.append(_row(kernel, view, part.name, "", bounds, expected, freed and running, symbols))
    # Without names of variables most parts are unknown, and so is the rest after them.
    if place.used is not None and rows and rows[-1].end < place.used.end and not kernel.code_only:
        page = kernel.form.page_size
        start = -(-(rows[-1].end + 1) // page) * page
        if start <= place.used.end:
            rest = (start, place.used.end + 1)
            rows.append(_row(kernel, view, _REST, "", rest, "rw-", False, "cleanup_highmap"))
    return rows


def _inner(kernel: Kernel, view: View) -> Iterator[SectionRow]:
    outer = {row.name: row for row in sections(kernel)}
    for name, inside, first, last in kernel.arch.image_inner:
        bounds = _bounds(kernel, first, last, whole_pages=False)
        parent = outer.get(inside)
        if bounds is None or parent is None or not parent.start <= bounds[0] <= parent.end:
            continue
        yield _row(kernel, view, name, inside, bounds, parent.expected, parent.freed, f"{first} to {last}")


def _bounds(
    kernel: Kernel, first: str, last: str, *, whole_pages: bool, last_kept: bool = False
) -> Optional[Tuple[int, int]]:
    """(start, end) from symbols, the end exclusive; None if this kernel does not have them, or the range is
    empty.
    """
    try:
        start = kernel.symbol(first)
        # _brk_end is a variable that holds the address.
        end = kernel.value(last).value if last == "_brk_end" else kernel.symbol(last)
    except Unavailable:
        if kernel.source.symbols == "none":
            raise
        return None
    if whole_pages:  # PFN_ALIGN() of both, or free_reserved_area()
        page = kernel.form.page_size
        start, end = -(-start // page) * page, (end if last_kept else end + page - 1) // page * page
    window = kernel.place(REGION).range
    if not window.start <= start < end <= window.end + 1:
        return None
    return start, end


def _is_running(kernel: Kernel) -> bool:
    """Whether init memory was freed and rights were set: ``system_state`` has reached SYSTEM_RUNNING."""
    try:
        running = int(kernel.prog.constant("SYSTEM_RUNNING").value_())
        return kernel.value("system_state", 4).value >= running
    except (LookupError, Unavailable):
        return True


def _row(
    kernel: Kernel,
    view: View,
    name: str,
    inside: str,
    bounds: Sequence[int],
    expected: str,
    freed: bool,
    symbols: str,
) -> SectionRow:
    start, end = bounds
    page = kernel.form.page_size
    low, high = start // page * page, -(-end // page) * page - 1
    found = view.stretch(low, high)
    physical = start - kernel.image_offset.value & ALL
    problem = None
    if found.unreadable or expected == "?":
        pass
    elif expected and found.mapped != high - low + 1:
        problem = f"{found.mapped} of {high - low + 1} bytes are mapped"
    elif not expected and found.mapped:
        problem = f"freed, but {found.mapped} bytes are still mapped"
    else:
        wrong = _wrong_rights(kernel, view, low, high, expected, ordinary=freed or name == _REST)
        if wrong:
            told = ", ".join(f"{at:016x} {rights}" for at, rights in list(wrong.items())[:3])
            problem = f"should be {expected}: {told}"
        elif found.mapped and kernel.walk(low).physical != physical // page * page:
            problem = f"is not at {physical:016x}"
    return SectionRow(
        name=name,
        inside=inside,
        start=Address(start),
        end=Address(end - 1),
        size=Size(end - start),
        physical=Address(physical),
        expected="" if expected == "?" else expected,
        rights=found.rights,
        mapped=Size(found.mapped),
        pages=found.pages,
        freed=freed,
        symbols=symbols,
        problem=problem,
    )


def _wrong_rights(
    kernel: Kernel, view: View, low: int, high: int, expected: str, *, ordinary: bool
) -> Dict[int, str]:
    """Addresses and rights of ranges whose rights are not the expected ones.

    :param ordinary: the memory belongs to the allocator. A user of it (a module, a BPF program) that makes
        its own mapping read-only also changes this one (arch/x86/mm/pat/set_memory.c:cpa_process_alias).
    """
    protected = {kernel.find_symbol(name) for name in kernel.arch.protected_pages}
    page = kernel.form.page_size
    wrong = {}
    for start, end, key in view.parts(low, high):
        if not key & MAPPED or rights_text(key) == expected:
            continue
        if rights_text(key) == "r--" and start in protected and end == start + page - 1:
            continue
        if ordinary and rights_text(key) == "r--":
            continue
        wrong[start] = rights_text(key)
    return wrong


REGION = KernelImage()
