# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own text and data, and the window in which KASLR may put them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch import x86_64_kaslr
from kvintro.arch.x86_64 import ALL, DEFAULT_TEXT, PAGE_SIZE, PMD_SHIFT, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.model import (
    Address,
    AddressRange,
    Column,
    Displacement,
    Fact,
    Located,
    NoRange,
    Placement,
    Size,
    Table,
)
from kvintro.paging import MAPPED
from kvintro.readers.boot_params import (
    alignment,
    boot_ram,
    booted_by_efi,
    image_sizes,
    unpacking,
)
from kvintro.readers.mapped import View, rights_text
from kvintro.readers.memory import debug_pagealloc
from kvintro.readers.randomness import (
    NO_PLACE,
    Randomised,
    drawn,
    kaslr_enabled,
    not_drawn,
    not_known,
    why_off,
)
from kvintro.regions import Asked, Contents, Linear, Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


# Of what guests share with their host: freed, and left mapped
# (arch/x86/mm/mem_encrypt_amd.c:mem_encrypt_free_decrypted_mem).
_UNUSED = "unused decrypted bss"
#: Of it smp_locks are freed, and as a rule left mapped (alternative.c:alternative_instructions).
LOCKS = "behind init"
# Parts in the order of addresses: name, first symbol, last symbol (exclusive), rights once the kernel runs,
# and whether it is freed then (arch/x86/mm/init_64.c:mark_rodata_ro, init.c:free_initmem). What lies between
# parts that follow one another is alignment, or belongs to the part before.
_PARTS: Tuple[Tuple[str, str, str, str, bool], ...] = (
    ("text", "_text", "_etext", "r-x", False),
    # Older kernels (5.4) have the exception table between.
    ("gap behind text", "__stop___ex_table", "__start_rodata", "", True),
    ("gap behind text", "_etext", "__start_rodata", "", True),
    ("rodata", "__start_rodata", "__end_rodata", "r--", False),
    ("gap behind rodata", "__end_rodata", "_sdata", "", True),
    ("data", "_sdata", "_edata", "rw-", False),
    ("more data", "_edata", "__init_begin", "rw-", False),
    ("init", "__init_begin", "__init_end", "", True),
    (LOCKS, "__init_end", "__bss_start", "rw-", False),
    ("bss", "__bss_start", "__start_bss_decrypted_unused", "rw-", False),
    (_UNUSED, "__start_bss_decrypted_unused", "__end_bss_decrypted", "rw-", True),
    # Without CONFIG_AMD_MEM_ENCRYPT.
    ("bss", "__bss_start", "__bss_stop", "rw-", False),
    ("brk", "__brk_base", "_brk_end", "rw-", False),
)
_REST = "rest of the last 2 MB"
# Parts of parts.
_INNER: Tuple[Tuple[str, str, str, str], ...] = (
    ("entry text", "text", "__entry_text_start", "__entry_text_end"),
    ("noinstr text", "text", "__noinstr_text_start", "__noinstr_text_end"),
    ("ro_after_init", "rodata", "__start_ro_after_init", "__end_ro_after_init"),
    ("exception table", "rodata", "__start___ex_table", "__stop___ex_table"),
    ("BTF", "rodata", "__start_BTF", "__stop_BTF"),
    ("init text", "init", "_sinittext", "_einittext"),
    ("per-CPU template", "init", "__per_cpu_start", "__per_cpu_end"),
)


@dataclass(frozen=True)
class SectionRow:
    """A part of the image.

    :ivar inside: the part that it is a part of, empty for the main ones.
    :ivar physical: where it lies by ``phys_base``.
    :ivar expected: rights that it should have; empty for nothing mapped.
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
    Column("physical", "physical"),
    Column("expected", "should be"),
    Column("rights", "rights"),
    Column("pages", "pages"),
    Column("freed", "freed"),
    Column("problem", ""),
)


class KernelImage(Region):
    """``__START_KERNEL_map`` for ``KERNEL_IMAGE_SIZE`` bytes; the image fills a small part of it.

    The rest of the window is unmapped at boot (arch/x86/mm/init_64.c:cleanup_highmap).
    """

    key = "kernel_image"
    row = 12
    name = "kernel image"
    macro = "__START_KERNEL_map"

    def locate(self, kernel: Kernel) -> Located:
        window = kernel.image_window
        found = AddressRange(START_KERNEL_MAP, START_KERNEL_MAP + window.value - 1)
        slide = kernel.image_slide
        used = None
        try:
            text, end = kernel.text, self._end(kernel)
            used = AddressRange(text.value, end.value)
            note = f"{text.provenance} to {end.provenance}"
        except (Unavailable, NoRange):
            note = ""
        return Placement(
            found,
            f"{window.provenance}, {slide.provenance.replace('VMCOREINFO ', '')}",
            default_start=DEFAULT_TEXT,
            slide=slide.value,
            used=used,
            used_note=note,
        )

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """``__pa()`` from __START_KERNEL_map up; modules lie above that too, and are not linear."""
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        return Linear(found.used or found.range, START_KERNEL_MAP - kernel.phys_base.value & ALL)

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """Its place in the window, and that in physical memory, which is drawn on its own."""
        return (_virtual_draw(kernel), _physical_draw(kernel))

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """The parts, and their rights as they are against what they should be."""
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
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
        totals = {
            "size": Size(0 if found.used is None else found.used.size),
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

    def _end(self, kernel: Kernel) -> Fact[int]:
        """Last address of what cleanup_highmap leaves: up to the end of the brk area, on a 2M boundary."""
        if kernel.code_only:
            return self._mapped_end(kernel)
        brk = kernel.value("_brk_end")
        return Fact((brk.value + (1 << PMD_SHIFT) - 1 >> PMD_SHIFT << PMD_SHIFT) - 1, "_brk_end")

    def _mapped_end(self, kernel: Kernel) -> Fact[int]:
        """Nothing else is mapped in the window, and of the brk area nothing is taken away again."""
        window = START_KERNEL_MAP + kernel.image_window.value - 1
        mapped = kernel.kernel_ranges.clip(START_KERNEL_MAP, window).select(MAPPED)
        last = max((high for _, high, _ in mapped), default=0)
        if not last:
            raise Unavailable("no page of the image is mapped")
        return Fact(last | (1 << PMD_SHIFT) - 1, "the last mapping in the window")


def _virtual_draw(kernel: Kernel) -> Randomised:
    """arch/x86/boot/compressed/kaslr.c:find_random_virt_addr; x86-stub.c:efi_decompress_kernel."""
    key, what = "image_virtual", "kernel image, virtual"
    actual = kernel.text.value
    default = actual - kernel.image_slide.value
    provenance = kernel.text.provenance
    try:
        enabled, _ = kaslr_enabled(kernel)
        align, load = alignment(kernel)
        least, most, source = image_sizes(kernel)
    except Unavailable as error:
        return not_known(key, what, error.what, default=default, actual=actual)
    if not enabled:
        return not_drawn(key, what, why_off(kernel), default=default, actual=actual, provenance=provenance)
    window = kernel.image_window.value
    size = least if most is None else most
    slots = x86_64_kaslr.image_slots(window, load, size, align)
    bound = "at most" if most is None else "at least"
    if slots == x86_64_kaslr.image_slots(window, load, least, align) and most is not None:
        bound = ""
    return drawn(
        key,
        what,
        default=default,
        actual=actual,
        granularity=align,
        slots=slots,
        bound=bound,
        provenance=provenance,
        computed=f"the window from {load >> 20} MB up, less {-(-size >> 20)} MB of image ({source})",
    )


def _physical_draw(kernel: Kernel) -> Randomised:
    """arch/x86/boot/compressed/kaslr.c:find_random_phys_addr."""
    key, what = "image_physical", "kernel image, physical"
    actual = kernel.text.value - START_KERNEL_MAP + kernel.phys_base.value & ALL
    provenance = kernel.phys_base.provenance
    try:
        enabled, _ = kaslr_enabled(kernel)
        align, preferred = alignment(kernel)
        if not enabled:
            reason = why_off(kernel)
            return not_drawn(key, what, reason, default=preferred, actual=actual, provenance=provenance)
        if booted_by_efi(kernel):
            return _firmware_draw(kernel, key, what, actual, provenance)
        least, most, _ = image_sizes(kernel)
        unpacker = unpacking(kernel)
    except Unavailable as error:
        return not_known(key, what, error.what, actual=actual)

    minimum = min(unpacker.load, x86_64_kaslr.HIGHEST_MINIMUM)
    computed = (
        f"RAM from {minimum >> 20} MB up by boot_params.e820_table, less what the unpacker uses (up to "
        f"{unpacker.taken[0][1] >> 20} MB), initrd and command line"
    )
    if actual == unpacker.load:
        # That place overlaps the packed kernel, so that it is never drawn.
        return not_drawn(
            key,
            what,
            "no other place was free for it, so it stayed where it was loaded",
            default=unpacker.load,
            actual=actual,
            provenance=provenance,
            slots=0,
            computed=computed,
        )
    fewest, greatest = (
        x86_64_kaslr.physical_places(unpacker.ram, unpacker.taken, minimum, size, align)
        for size in (least if most is None else most, least)
    )
    slots, other = sum(map(len, fewest)), sum(map(len, greatest))
    if not unpacker.complete:
        slots, bound = other, "at most"
    else:
        bound = "" if slots == other else "at least"
    return drawn(
        key,
        what,
        default=unpacker.load,
        actual=actual,
        granularity=align,
        slots=max(slots, 1),
        bound=bound,
        provenance=provenance,
        computed=computed,
        note="" if any(actual in found for found in greatest) else NO_PLACE,
    )


def _firmware_draw(kernel: Kernel, key: str, what: str, actual: int, provenance: str) -> Randomised:
    """What the firmware's memory map allowed: x86-stub.c:efi_decompress_kernel by efi_random_alloc, before
    a1b87d54f4e4 "x86/efistub: Avoid legacy decompressor when doing EFI boot" kaslr.c:process_efi_entries.

    Of that map only the RAM is kept, in the table that the stub made of it (x86-stub.c:setup_e820).
    """
    align, preferred = alignment(kernel)
    least, _, _ = image_sizes(kernel)
    found = x86_64_kaslr.physical_places(boot_ram(kernel), [], preferred, least, align)
    return drawn(
        key,
        what,
        # Firmware chooses without KASLR, too.
        default=None,
        actual=actual,
        granularity=align,
        slots=max(sum(map(len, found)), 1),
        bound="at most",
        provenance=provenance,
        computed="RAM by boot_params.e820_table; the firmware's own map, which decided, is not kept",
        note="" if any(actual in places for places in found) else NO_PLACE,
    )


def sections(kernel: Kernel) -> List[SectionRow]:
    """The main parts of the image, in the order of addresses.

    :raises Unavailable: there are no symbols.
    """
    place = kernel.locate(REGION)
    if not isinstance(place, Placement):
        raise Unavailable(place.reason)
    view = View.of(kernel, place.range.start, place.range.end)
    running = _is_running(kernel)
    pti = kernel.pti.value
    unmapped = debug_pagealloc(kernel)
    rows: List[SectionRow] = []
    for name, first, last, rights, freed in _PARTS:
        bounds = _bounds(kernel, first, last, whole_pages=freed)
        if bounds is None or any(row.name == name for row in rows):
            continue
        expected = rights
        if freed and name != _UNUSED:
            # What is freed becomes ordinary memory; under PTI its mapping goes (free_kernel_image_pages).
            expected = "?" if not running else "" if pti or unmapped else "rw-"
        elif unmapped and (freed or name == LOCKS):
            expected = "?"
        symbols = f"{first} to {last}"
        rows.append(_row(kernel, view, name, "", bounds, expected, freed and running, symbols))
    # Where variables have no names, most parts are not known, and so is what they leave.
    if place.used is not None and rows and rows[-1].end < place.used.end and not kernel.code_only:
        start = -(-(rows[-1].end + 1) // PAGE_SIZE) * PAGE_SIZE
        if start <= place.used.end:
            rest = (start, place.used.end + 1)
            rows.append(_row(kernel, view, _REST, "", rest, "rw-", False, "cleanup_highmap"))
    return rows


def _inner(kernel: Kernel, view: View) -> Iterator[SectionRow]:
    outer = {row.name: row for row in sections(kernel)}
    for name, inside, first, last in _INNER:
        bounds = _bounds(kernel, first, last, whole_pages=False)
        parent = outer.get(inside)
        if bounds is None or parent is None or not parent.start <= bounds[0] <= parent.end:
            continue
        yield _row(kernel, view, name, inside, bounds, parent.expected, parent.freed, f"{first} to {last}")


def _bounds(kernel: Kernel, first: str, last: str, *, whole_pages: bool) -> Optional[Tuple[int, int]]:
    """(start, end) from symbols, the end exclusive; None if this kernel does not have them, or nothing
    between.
    """
    try:
        start = kernel.symbol(first)
        end = kernel.value(last).value if last == "_brk_end" else kernel.symbol(last)
    except Unavailable:
        if kernel.source.symbols == "none":
            raise
        return None
    if whole_pages:  # PFN_ALIGN() of both
        start, end = (-(-at // PAGE_SIZE) * PAGE_SIZE for at in (start, end))
    window = kernel.image_window.value
    if not START_KERNEL_MAP <= start < end <= START_KERNEL_MAP + window:
        return None
    return start, end


def _is_running(kernel: Kernel) -> bool:
    """Whether init memory was freed and rights were set: ``system_state`` has come to SYSTEM_RUNNING."""
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
    low, high = start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE - 1
    found = view.stretch(low, high)
    physical = start - START_KERNEL_MAP + kernel.phys_base.value & ALL
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
        elif found.mapped and kernel.walk(low).physical != physical // PAGE_SIZE * PAGE_SIZE:
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
    """Addresses and rights of what is mapped otherwise than expected.

    The IDT is data, but has been read-only since idt_setup_apic_and_irq_gates.

    :param ordinary: the memory is the allocator's. Whoever has it makes it read-only here too, where it does
        so elsewhere (arch/x86/mm/pat/set_memory.c:cpa_process_alias): a module, a BPF program.
    """
    idt = kernel.find_symbol("idt_table")
    wrong = {}
    for start, end, key in view.parts(low, high):
        if not key & MAPPED or rights_text(key) == expected:
            continue
        if rights_text(key) == "r--" and start == idt and end == start + PAGE_SIZE - 1:
            continue
        if ordinary and rights_text(key) == "r--":
            continue
        wrong[start] = rights_text(key)
    return wrong


REGION = KernelImage()
