# SPDX-License-Identifier: LGPL-2.1-or-later
"""Places of the common regions on x86-64.

The rules are those of ``arch/x86/include/asm/pgtable_64_types.h``, ``page_64_types.h``, ``fixmap.h`` and
``arch/x86/mm/kaslr.c:kernel_randomize_memory``.
"""

from __future__ import annotations

from typing import Callable, Mapping, Optional, Tuple

from kvintro.arch.facts import no_modules
from kvintro.arch.x86_64.form import (
    CPU_ENTRY_AREA_BASE,
    DEFAULT_TEXT,
    FIXADDR_TOP,
    MODULES_END,
    PAGE_SHIFT,
    PAGE_SIZE,
    PMD_SHIFT,
    START_KERNEL_MAP,
    VSYSCALL_ADDR,
    X86Form,
)
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Absent, AddressRange, Fact, Located, NoRange, Placement
from kvintro.paging import MAPPED
from kvintro.source.variables import KASAN_FUNCTION

# Memory that is not RAM leaves holes in the direct map, up to devices' 64-bit windows.
_LARGEST_GAP = 1 << 40
# arch/x86/include/asm/fixmap.h:FIXMAP_PMD_NUM, arch/x86/kernel/head_64.S: the slots have two tables since
# "x86/mm: Expand static page table for fixmap space" (05ab1d8a4b36, 4.20).
_FIXMAP_ROOM = FIXADDR_TOP + PAGE_SIZE - (2 << PMD_SHIFT) & -(1 << PMD_SHIFT)
_SECTION_FLAGS = 0xFFF  # of section_mem_map; more bits than there are flags


def _form(kernel: Kernel) -> X86Form:
    form = kernel.form
    assert isinstance(form, X86Form)
    return form


def direct_map(kernel: Kernel) -> Located:
    """Starts at ``page_offset_base``."""
    base = kernel.linear_offset
    default = _form(kernel).page_offset_base
    end, source, open_ended = _reserved_end(kernel, base.value, base.value - default)
    found = AddressRange(base.value, end)
    used, note = _used(kernel, found, PAGE_SIZE)
    return Placement(
        found,
        f"{base.provenance}, {source}",
        default_start=default,
        slide=base.value - default,
        used=used,
        used_note=note,
        open_ended=open_ended,
    )


def _used(kernel: Kernel, where: AddressRange, each: int) -> Tuple[Optional[AddressRange], str]:
    """The part of a region that the page frames of RAM use, and where their number was read from.

    :param each: bytes of the region for each page frame.
    """
    try:
        frames = kernel.max_pfn
    except Unavailable:
        return None, ""
    last = where.start + frames.value * each - 1
    if last not in where:
        return None, ""
    return AddressRange(where.start, last), f"up to {frames.provenance}"


def _reserved_end(kernel: Kernel, base: int, slide: int) -> Tuple[int, str, bool]:
    """(last address, where it was read from, whether more may follow)."""
    bits = kernel.facts.max_physmem_bits.value
    try:
        # 6.12 calls it physmem_end, later kernels direct_map_physmem_end; both inclusive.
        last = kernel.first_value("direct_map_physmem_end", "physmem_end")
        if last.value < 1 << bits:
            return base + last.value & ALL, last.provenance, False
    except Unavailable:
        pass
    most = base + (1 << bits) - 1
    if slide == 0:
        return most, "MAX_PHYSMEM_BITS", False
    # Before the variable existed, the reserved size was discarded after boot. Only the next region bounds it.
    following = kernel.locate("vmalloc")
    if isinstance(following, Placement) and following.range.start > base:
        if following.range.start > most:
            return most, "MAX_PHYSMEM_BITS at most", False
        return following.range.start - 1, "up to vmalloc_base", False
    return _mapped_end(kernel, base), "mapped at least up to there", True


def _mapped_end(kernel: Kernel, base: int) -> int:
    """Last address after the base that page tables map as the direct map would."""
    end = None
    for low, high, _ in kernel.kernel_ranges.clip(base, CPU_ENTRY_AREA_BASE - 1).select(MAPPED):
        if end is not None and low > end + _LARGEST_GAP:
            break
        if kernel.walk(low).physical != low - base:
            break
        end = high
    if end is None:
        raise Unavailable("the end of the direct map is not known")
    return end


def vmalloc(kernel: Kernel) -> Located:
    """``VMALLOC_START .. VMALLOC_END`` (inclusive)."""
    base = kernel.first_fact(
        lambda: kernel.value("vmalloc_base"), lambda: kernel.number("NUMBER(VMALLOC_START)")
    )
    default = _form(kernel).vmalloc_base
    note = ""
    size = _form(kernel).vmalloc_size
    if kernel.source.symbols != "none" and kernel.has_symbol("__msan_poison_alloca", code=True):
        size //= 4
        note = "the first quarter; KMSAN keeps its metadata in the other three"
    return Placement(
        AddressRange(base.value, base.value + size - 1),
        f"{base.provenance}, VMALLOC_SIZE_TB",
        default_start=default,
        slide=base.value - default,
        note=note,
    )


def memory_map(kernel: Kernel) -> Fact[int]:
    """Address of the struct page of page frame 0."""
    return kernel.first_fact(
        lambda: kernel.value("vmemmap_base"),
        lambda: kernel.number("SYMBOL(vmemmap)"),
        lambda: _from_section(kernel),
    )


def vmemmap(kernel: Kernel) -> Located:
    """Starts at ``vmemmap_base``."""
    base = kernel.facts.memory_map
    default = _form(kernel).vmemmap_base
    page = kernel.page_struct_size.value
    direct = kernel.locate("direct_map")
    if not isinstance(direct, Placement):
        raise Unavailable(f"its size depends on the direct map: {direct.reason}")
    needed = (direct.range.size >> PAGE_SHIFT) * page
    reserved, size = -(-needed >> 40) << 40, "size of the direct map"
    if direct.slide and base.value + reserved > CPU_ENTRY_AREA_BASE > base.value:
        # The size reserved for the direct map may be inexact, but the next region is known.
        reserved, size = CPU_ENTRY_AREA_BASE - base.value, "up to cpu_entry_area"
    found = AddressRange(base.value, base.value + reserved - 1)
    used, note = _used(kernel, found, page)
    return Placement(
        found,
        f"{base.provenance}, {size}",
        default_start=default,
        slide=base.value - default,
        used=used,
        used_note=note,
    )


def _from_section(kernel: Kernel) -> Fact[int]:
    """The map of section 0, without the flags. With SPARSEMEM_VMEMMAP every section's is vmemmap itself."""
    root = kernel.number("SYMBOL(mem_section)").value
    offset = kernel.number("OFFSET(mem_section.section_mem_map)").value
    if kernel.source.vmcoreinfo.get("LENGTH(mem_section)"):
        # SPARSEMEM_EXTREME: an array of pointers to pages of sections; the key has the array's address.
        root = int.from_bytes(kernel.read(root, 8), "little")
    value = int.from_bytes(kernel.read(root + offset, 8), "little") & ~_SECTION_FLAGS
    if value < _form(kernel).guard_hole.end:
        raise Unavailable("section 0 has no memory map")
    return Fact(value, "VMCOREINFO SYMBOL(mem_section)")


def kasan_shadow(kernel: Kernel) -> Located:
    """``KASAN_SHADOW_START .. KASAN_SHADOW_END``, arch/x86/include/asm/kasan.h."""
    if not kernel.has_symbol(KASAN_FUNCTION, code=True):
        return Absent("CONFIG_KASAN is off")
    found = _form(kernel).kasan_shadow
    note = "maps mostly one shared page of zeros"
    return Placement(found, "constant", default_start=found.start, note=note)


def kernel_image(kernel: Kernel) -> Located:
    """``__START_KERNEL_map`` for ``KERNEL_IMAGE_SIZE`` bytes.

    The rest of the window is unmapped at boot (arch/x86/mm/init_64.c:cleanup_highmap).
    """
    window = _window(kernel)
    found = AddressRange(START_KERNEL_MAP, START_KERNEL_MAP + window.value - 1)
    slide = kernel.image_slide
    used = None
    try:
        text, end = kernel.text, _image_end(kernel)
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


def _window(kernel: Kernel) -> Fact[int]:
    """KERNEL_IMAGE_SIZE in bytes: the window in which the image may lie."""
    return kernel.number("NUMBER(KERNEL_IMAGE_SIZE)")


def _image_end(kernel: Kernel) -> Fact[int]:
    """Last address that cleanup_highmap leaves mapped: the end of the brk area, rounded up to 2M."""
    if kernel.code_only:
        # Nothing else is mapped in the window, and the brk area is never unmapped.
        window = START_KERNEL_MAP + _window(kernel).value - 1
        mapped = kernel.kernel_ranges.clip(START_KERNEL_MAP, window).select(MAPPED)
        last = max((high for _, high, _ in mapped), default=0)
        if not last:
            raise Unavailable("no page of the image is mapped")
        return Fact(last | (1 << PMD_SHIFT) - 1, "the last mapping in the window")
    brk = kernel.value("_brk_end")
    return Fact((brk.value + (1 << PMD_SHIFT) - 1 >> PMD_SHIFT << PMD_SHIFT) - 1, "_brk_end")


def modules(kernel: Kernel) -> Located:
    """``MODULES_VADDR .. MODULES_END``: between the image's window and the fixmap."""
    absent = no_modules(kernel)
    if absent is not None:
        return absent
    window = _window(kernel)
    start = START_KERNEL_MAP + window.value
    end = MODULES_END
    if _has_kmap_slots(kernel):
        end = MODULES_END - (16 << 20)
    return Placement(AddressRange(start, end - 1), f"{window.provenance}, MODULES_END", start)


def _has_kmap_slots(kernel: Kernel) -> bool:
    """Whether CONFIG_DEBUG_KMAP_LOCAL_FORCE_MAP gives the fixmap another 16 MB."""
    try:
        kernel.prog.constant("FIX_KMAP_BEGIN")
        return True
    except LookupError:
        # mm/highmem.c, which 64-bit kernels have only for this option.
        return kernel.find_symbol("__kmap_local_pfn_prot") is not None


def fixmap(kernel: Kernel) -> Located:
    """``FIXADDR_START`` up to the vsyscall page; slots count downwards from ``FIXADDR_TOP``.

    The slots above the vsyscall page, which is slot 511, have no names. Without the page the range extends to
    FIXADDR_TOP. The slots below FIXADDR_START, down to FIXADDR_TOT_START, are for early boot only.
    """
    if kernel.source.types == "none":
        return _fixmap_room(kernel)
    slots = kernel.fixmap_slots
    start = FIXADDR_TOP - (slots << PAGE_SHIFT)
    # Without CONFIG_X86_VSYSCALL_EMULATION there is no vsyscall page, and slots begin with 0.
    try:
        first = int(kernel.prog.constant("VSYSCALL_PAGE").value_()) + 1
        end = VSYSCALL_ADDR - 1
    except LookupError:
        first, end = 0, FIXADDR_TOP + PAGE_SIZE - 1
    note = f"slots {first} to {slots - 1}, and the page below them"
    return Placement(AddressRange(start, end), "enum fixed_addresses", note=note)


def _fixmap_room(kernel: Kernel) -> Placement:
    """The range of the page tables for the fixmap, if the number of slots is unknown.

    :raises Unavailable: the tables are not the kernel's two, or it is unknown whether there is a vsyscall
        page.
    """
    if _has_kmap_slots(kernel):
        raise Unavailable("its slots are an enum, which cannot be read without types")
    for address in (_FIXMAP_ROOM, _FIXMAP_ROOM + (1 << PMD_SHIFT)):
        steps = kernel.walk(address).steps
        if not steps or steps[-1].level != 1:
            raise Unavailable("its slots are an enum, and its page tables are not those that kernels have")
    emulated = kernel.has_symbol("map_vsyscall", code=True)
    return Placement(
        AddressRange(_FIXMAP_ROOM, VSYSCALL_ADDR - 1 if emulated else FIXADDR_TOP + PAGE_SIZE - 1),
        "page tables",
        note="the range of its page tables; the number of slots cannot be read without types",
    )


PLACES: Mapping[str, Callable[[Kernel], Located]] = {
    "direct_map": direct_map,
    "vmalloc": vmalloc,
    "vmemmap": vmemmap,
    "kasan_shadow": kasan_shadow,
    "kernel_image": kernel_image,
    "modules": modules,
    "fixmap": fixmap,
}
