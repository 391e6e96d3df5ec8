# SPDX-License-Identifier: LGPL-2.1-or-later
"""Places of the common regions on aarch64.

The rules are those of ``arch/arm64/include/asm/memory.h``, ``pgtable.h``, ``fixmap.h`` and ``kasan.h``.
"""

from __future__ import annotations

from typing import Callable, Mapping, Optional, Protocol, Tuple

from kvintro.arch.aarch64.form import Arm64Form
from kvintro.arch.aarch64.nameless import word_read_by
from kvintro.arch.aarch64.space import Space
from kvintro.arch.facts import no_modules, of_nodes, shadow_place
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Absent, AddressRange, Fact, Located, Placement, Unknown
from kvintro.paging import MAPPED

_MAX_IMAGE = 1 << 30
#: Maximum distance of modules from the image: the range of ADRP and PLTs (SZ_2G).
_MODULE_REACH = 2 << 30


class Bounds(Protocol):
    """The part of :class:`kvintro.arch.aarch64.facts.Arm64Facts` that is used here."""

    @property
    def form(self) -> Arm64Form: ...

    @property
    def space(self) -> Space: ...

    @property
    def linear_end(self) -> Fact[int]: ...

    @property
    def linear_offset(self) -> Fact[int]: ...

    @property
    def memory_map(self) -> Fact[int]: ...

    @property
    def kaslr(self) -> Fact[bool]: ...

    @property
    def image_place(self) -> int: ...

    @property
    def image_slide(self) -> Fact[int]: ...

    @property
    def image_offset(self) -> Fact[int]: ...

    @property
    def vmalloc(self) -> AddressRange: ...

    @property
    def modules(self) -> AddressRange: ...

    @property
    def shadow(self) -> Optional[AddressRange]: ...

    def fixmap(self, *, whole: bool) -> AddressRange: ...


def direct_map(kernel: Kernel, facts: Bounds) -> Located:
    """PAGE_OFFSET to PAGE_END - 1. The range never moves; KASLR may randomise where RAM begins in it."""
    end = facts.linear_end
    found = AddressRange(facts.form.linear_map.start, end.value - 1)
    return of_nodes(kernel, found, end.provenance, facts.linear_offset.value, facts.form.page_size)


def vmalloc(kernel: Kernel, facts: Bounds) -> Located:
    """VMALLOC_START to VMALLOC_END - 1. It contains the kernel's image."""
    return Placement(facts.vmalloc, "VMALLOC_START, VMALLOC_END")


def vmemmap(kernel: Kernel, facts: Bounds) -> Located:
    """VMEMMAP_START to VMEMMAP_END - 1; on a processor with fewer bits, the part that it uses."""
    base, size = facts.memory_map.value, kernel.page_struct_size.value
    return of_nodes(kernel, facts.space.vmemmap, "constant", base, size)


def kasan_shadow(kernel: Kernel, facts: Bounds) -> Located:
    """KASAN_SHADOW_START to KASAN_SHADOW_END - 1."""
    return shadow_place(facts.shadow)


def kernel_image(kernel: Kernel, facts: Bounds) -> Located:
    """_text to _end - 1, within vmalloc. KERNELOFFSET is relative to KIMAGE_VADDR.

    Older kernels do not map the part before _stext, and use its addresses for other data (6.1).
    """
    slide = facts.image_slide
    start = facts.image_place + slide.value & ALL
    end, provenance = image_end(kernel, facts)
    note = ""
    if kernel.walk(start).physical != start - facts.image_offset.value & ALL:
        start, note = (
            kernel.number("SYMBOL(_stext)").value,
            "starts at _stext: the part before it is not mapped",
        )
    return Placement(
        AddressRange(start, end),
        f"{slide.provenance.replace('VMCOREINFO ', '')}, {provenance}",
        default_start=facts.image_place,
        slide=slide.value,
        note=note,
        parent="vmalloc",
    )


def image_end(kernel: Kernel, facts: Bounds) -> Tuple[int, str]:
    """Last address of the image, and its provenance."""
    start = kernel.number("SYMBOL(_stext)").value
    end = kernel.find_symbol("_end")
    if end is not None and start < end <= start + _MAX_IMAGE:
        return end - 1, "_end"
    # Parts of it are freed and unmapped; mappings after them that follow its rule still belong to the image.
    offset, last = facts.image_offset.value, 0
    most = min(start + _MAX_IMAGE - 1, facts.form.kernel.end)
    for low, high, _ in kernel.kernel_ranges.clip(start, most).select(MAPPED):
        if kernel.walk(low).physical != low - offset & ALL:
            break
        last = high
    if not last:
        raise Unavailable("no page of the image is mapped")
    return last, "the last page that is mapped by kimage_voffset"


def modules(kernel: Kernel, facts: Bounds) -> Located:
    """The place of modules: with KASLR in a random window around the image, otherwise at MODULES_VADDR.

    arch/arm64/mm/init.c:module_init_limits (before 6.5 ``kernel/kaslr.c:kaslr_init``). Memory is allocated
    from the beginning of the window, so the region is the part of the window below the image.
    """
    absent = no_modules(kernel)
    if absent is not None:
        return absent
    if not facts.kaslr.value:
        return Placement(facts.modules, "MODULES_VADDR, MODULES_END")
    image = facts.image_place + facts.image_slide.value & ALL
    start, name, note = _window_start(kernel, facts, image)
    if not facts.modules.start <= start < image:
        return Unknown(f"{name} is {start:016x}, and modules begin below the image, at {image:016x}")
    # If the two windows touch, it begins in that of MODULES_VADDR.
    parent = "vmalloc" if start in facts.vmalloc else ""
    if not parent:
        return Placement(facts.modules, "MODULES_VADDR, MODULES_END")
    return Placement(AddressRange(start, image - 1), f"{name}, _text", note=note, parent=parent)


def module_base(kernel: Kernel) -> Optional[Fact[int]]:
    """The variable that the memory of modules starts at; None if none is found or has a value."""
    for name in ("module_direct_base", "module_plt_base", "module_alloc_base"):
        if kernel.find_symbol(name) is not None:
            value = kernel.value(name).value
            if value:
                return Fact(value, name)
    # Since 6.5, module_alloc() reads other variables.
    if not kernel.code_only or kernel.find_symbol("module_init_limits") is not None:
        return None
    found = word_read_by(kernel, "module_alloc")
    return None if found is None or not found[1] else Fact(found[1], "module_alloc_base")


def _window_start(kernel: Kernel, facts: Bounds, image: int) -> Tuple[int, str, str]:
    """Start of the window, its provenance, and a remark for the user."""
    note = "the window continues after the image, for when this part is full"
    base = module_base(kernel)
    if base is not None:
        return base.value, base.provenance, note
    if not kernel.code_only:
        raise Unavailable("this kernel has none of the symbols module_plt_base, module_alloc_base")
    end, _ = image_end(kernel, facts)
    start = max(end + 1 - _MODULE_REACH, facts.vmalloc.start)
    return start, "2 GB before _end", "modules are somewhere in it: module_alloc_base cannot be found"


def modules_without_kaslr(kernel: Kernel, facts: Bounds) -> Located:
    """MODULES_VADDR to MODULES_END - 1, if modules are elsewhere."""
    found = modules(kernel, facts)
    if isinstance(found, Placement) and not found.parent:
        return Absent("modules are in it: it is the region modules")
    return Placement(facts.modules, "MODULES_VADDR, MODULES_END", note="modules are around the image instead")


def fixmap(kernel: Kernel, facts: Bounds) -> Located:
    """FIXADDR_START to FIXADDR_TOP - 1. Slots for early boot are below."""
    found = facts.fixmap(whole=False)
    return Placement(found, "enum fixed_addresses", note=f"slots 1 to {kernel.fixmap_slots}")


def pci_io(kernel: Kernel, facts: Bounds) -> Located:
    """PCI_IO_START to PCI_IO_END - 1."""
    return Placement(facts.space.pci_io, "constant")


PLACES: Mapping[str, Callable[[Kernel, Bounds], Located]] = {
    "direct_map": direct_map,
    "vmalloc": vmalloc,
    "vmemmap": vmemmap,
    "kasan_shadow": kasan_shadow,
    "kernel_image": kernel_image,
    "modules": modules,
    "modules_without_kaslr": modules_without_kaslr,
    "fixmap": fixmap,
    "pci_io": pci_io,
}
