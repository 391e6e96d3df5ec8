# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: rules of ``kvintro check`` for this architecture only, and values repeated in VMCOREINFO."""

from __future__ import annotations

from typing import Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.arch.aarch64.form import GP
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Region, Trait
from kvintro.model import ALL, Absent, AddressRange
from kvintro.paging import EFFECTIVE_EXEC, EFFECTIVE_USER, EFFECTIVE_WRITE, MAPPED
from kvintro.queries.audit.rights import (
    RIGHTS,
    WRITABLE_AND_EXECUTABLE,
    alias,
    areas_of_code,
    between,
    broken_in,
    image_part,
    look,
    rights_of,
)
from kvintro.queries.audit.running import KcoreStart, start_of
from kvintro.queries.audit.verdict import MOST, Check, Finding, Said, Tally, Verdict, not_applicable
from kvintro.queries.modules import module_memory
from kvintro.readers.command_line import given, options

_ANY = ((MAPPED, MAPPED),)
_MAY_EXECUTE = ((MAPPED | EFFECTIVE_EXEC, MAPPED | EFFECTIVE_EXEC),)
_WRITABLE = MAPPED | EFFECTIVE_WRITE
_READ_ONLY = ((_WRITABLE, MAPPED),)
_MOST_PAGES = 1 << 16  # of modules; each takes a walk


def kpti(kernel: Kernel) -> Verdict:
    """arch/arm64/kernel/cpufeature.c:unmap_kernel_at_el0."""
    isolation = kernel.isolation
    if isolation.value:
        return Verdict(isolation.provenance, 1)
    unknown = ""
    try:
        words: Tuple[str, ...] = options(kernel)
    except Unavailable as error:
        words = ()
        unknown = f"the reason why it is off is not known: {error.what}"
    by_hand = [
        word for name in ("kpti", "mitigations") for word in given(words, name) if word in _SWITCHES_OFF
    ]
    if by_hand:
        why, severity = f": {by_hand[-1]} on the command line", "warning"
    else:
        why, severity = ": the kernel did not take this processor for one that needs it", "notice"
    found = Finding(None, None, f"page-table isolation is off{'' if unknown else why}", severity)
    return Verdict(isolation.provenance, 1, (found,), unknown)


_SWITCHES_OFF = ("kpti=off", "kpti=0", "kpti=n", "kpti=no", "mitigations=off")


def firmware(kernel: Kernel) -> Verdict:
    """The tables of EFI's runtime services (arch/arm64/kernel/efi.c:create_mapping_protection)."""
    root = arm64_facts(kernel).firmware_root()
    if isinstance(root, Absent):
        return not_applicable(root.reason)
    part = kernel.form.user
    ranges = kernel.new_tree(root.table).ranges(part.start, part.end)
    tally = Tally("mapped ranges")
    tally.findings += broken_in(ranges, part, WRITABLE_AND_EXECUTABLE)
    look(tally, "efi_mm", ranges, part)
    return tally.verdict()


def data_alias(kernel: Kernel) -> Verdict:
    """Newer kernels remove the image's data from the linear map (arch/arm64/mm/mmu.c:set_memory_valid).

    They remove all of ``__init_end`` to ``__bss_stop``; the entries remain, without VALID.
    """
    new = arm64_facts(kernel).new_invalid
    if new is None:
        raise Unavailable("the encoding of entries that are not valid is not known")
    if not new:
        return not_applicable(_BOTH)
    data = between(kernel, "__init_end", "__bss_stop")
    size = data.size & -kernel.form.page_size
    part = alias(kernel, AddressRange(data.start, data.start + size - 1))
    ranges = kernel.kernel_ranges.clip(part.start, part.end)
    mapped = ranges.masked(RIGHTS).matching(_ANY, MOST)
    tally = Tally("bytes")
    look(tally, "the direct map", ranges, part, may_be_empty=True)
    verdict = tally.verdict(f"{size} bytes of data")
    if verdict.unknown:
        return verdict
    left = sum(end - start + 1 for start, end, _ in mapped)
    if 2 * left > size:
        return not_applicable(_BOTH)
    found = [
        Finding(start, end, f"the direct map also maps it: {rights_of(key)}") for start, end, key in mapped
    ]
    return Verdict(f"{size} bytes of data", size, tuple(found))


_BOTH = "this kernel also maps the image's data in the direct map"


def module_aliases(kernel: Kernel) -> Verdict:
    """rodata=full: arch/arm64/mm/pageattr.c:change_memory_common changes both mappings."""
    pieces = module_memory(kernel)
    if not pieces:
        return not_applicable("no module is loaded")
    tally = Tally("pages")
    page, linear = kernel.form.page_size, kernel.linear_offset.value
    total = 0
    for piece in pieces:
        ranges = kernel.kernel_ranges.clip(piece.start, piece.end)
        look(Tally(), piece.module, ranges, AddressRange(piece.start, piece.end))
        for address in _pages(ranges.matching(_READ_ONLY, MOST), page):
            if total >= _MOST_PAGES:
                tally.lacks(f"only the first {total} pages of modules were looked at")
                break
            total += 1
            physical = kernel.walk(address).physical
            if physical is None:
                tally.lacks("some page tables are not in this source")
            elif _is_writable(kernel, physical + linear & ALL) and not tally.full:
                what = f"{piece.module}: the direct map can write physical {physical:#x}"
                tally.findings.append(Finding(address, address + page - 1, what))
    tally.compared("modules", total)
    if len(tally.findings) == min(total, MOST) and not _rodata_full(kernel):
        why = "rodata=full is off: modules' read-only data is writable in the direct map"
        tally.findings[:] = [Finding(None, None, why, "warning")]
    return tally.verdict()


def _pages(ranges: Iterable[Tuple[int, int, int]], page: int) -> Iterator[int]:
    """Addresses of the pages in ranges."""
    for start, end, _ in ranges:
        yield from range(start & -page, end + 1, page)


def _is_writable(kernel: Kernel, address: int) -> bool:
    found = kernel.kernel_ranges.clip(address, address)
    return bool(found.matching(((_WRITABLE, _WRITABLE),), 1))


def _rodata_full(kernel: Kernel) -> bool:
    """Whether the kernel says that it protects both mappings; False if unknown."""
    try:
        return bool(kernel.value("rodata_full", 1).value)
    except Unavailable:
        return False


def bti(kernel: Kernel) -> Verdict:
    """CONFIG_ARM64_BTI_KERNEL: GP on all text, including that of modules (PTE_MAYBE_GP).

    Slots of kprobes and the entry trampoline do not have it, as no indirect branch leads to them.
    """
    name, text = image_part(kernel, "text")
    ours = kernel.kernel_ranges.clip(text.start, text.end)
    if not ours.any(GP):
        return not_applicable("the kernel's text is not guarded by BTI")
    tally = Tally("mapped ranges")
    pieces: List[Tuple[str, AddressRange]] = [(name, text)]
    pieces += [(piece.module, AddressRange(piece.start, piece.end)) for piece in module_memory(kernel)]
    for owner, part in pieces:
        ranges = kernel.kernel_ranges.clip(part.start, part.end)
        look(tally, "modules" if part is not text else name, ranges, part)
        tally.findings += [
            Finding(start, end, f"{owner}: code that BTI does not guard", "warning")
            for start, end, key in ranges.matching(_MAY_EXECUTE, MOST)
            if not key & GP
        ]
    return tally.verdict()


def trampoline(kernel: Kernel) -> Verdict:
    """tramp_pg_dir maps only the entry code (arch/arm64/mm/mmu.c:map_entry_trampoline)."""
    root = kernel.facts.user_root(kernel.root.value)
    if root is None:
        return not_applicable(f"page-table isolation is off ({kernel.isolation.provenance})")
    half, code = kernel.form.kernel, _entry_code(kernel)
    ranges = kernel.new_tree(root).ranges(half.start, half.end)
    tally = Tally("mapped ranges")
    look(tally, "tramp_pg_dir", ranges, half)
    for start, end, key in ranges.masked(RIGHTS).matching(_ANY, MOST):
        if key & (EFFECTIVE_WRITE | EFFECTIVE_USER) or not _maps(kernel, start, end, code, root):
            tally.findings.append(Finding(start, end, rights_of(key)))
    return tally.verdict()


def _entry_code(kernel: Kernel) -> AddressRange:
    """Physical addresses of the code by which user mode enters a kernel with KPTI.

    In older kernels it has no symbol if there are only symbols of code; it is then anywhere in the read-only
    part of the image.
    """
    try:
        found = between(kernel, "__entry_tramp_text_start", "__entry_tramp_text_end")
    except Unavailable:
        if not kernel.code_only:
            raise
        found = between(kernel, "_stext", "__init_begin")
    offset = kernel.image_offset.value
    return AddressRange(found.start - offset & ALL, found.end - offset & ALL)


def _maps(kernel: Kernel, start: int, end: int, physical: AddressRange, root: Optional[int] = None) -> bool:
    """Whether a range maps only addresses of a physical range."""
    page = kernel.form.page_size
    return end - start < physical.size and all(
        found is not None and found in physical
        for address in range(start, end + 1, page)
        for found in [kernel.walk(address, root).physical]
    )


#: No physical memory is expected to contain code because of its address.
LOW_CODE = 0


def unexplained(
    kernel: Kernel, region: Region, findings: Sequence[Finding], tally: Tally
) -> Sequence[Finding]:
    """See :data:`kvintro.queries.audit.rights.Unexplained`.

    Slots of the fixmap contain the trampoline of KPTI. vmalloc areas contain BPF programs, slots of kprobes,
    and modules that did not fit into the window below the image.
    """
    if Trait.SLOTS in region.traits:
        code = _entry_code(kernel)
        return [f for f in findings if not _maps(kernel, f.start or 0, f.end or 0, code)]
    if Trait.AREAS not in region.traits:
        return findings
    try:
        allowed = areas_of_code(kernel, kernel.place(region).range)
    except Unavailable as error:
        tally.lacks(f"{region.name}: whether executable pages are areas of code is not known: {error.what}")
        return ()
    return [f for f in findings if not any(f.start in area and f.end in area for area in allowed)]


def rounded(kernel: Kernel, region: Region) -> Sequence[AddressRange]:
    """Ranges where large pages also map memory beyond that intended.

    Older kernels map the device tree in blocks of 2M (arch/arm64/mm/mmu.c:fixmap_remap_fdt).
    """
    if Trait.SLOTS not in region.traits:
        return ()
    return (arm64_facts(kernel).device_tree,)


#: By the key of the shared rule after which they are listed.
CHECKS: Mapping[str, Sequence[Check]] = {
    "kaslr": (Check("kpti", "user mode runs on page tables without the kernel", kpti),),
    "wx": (Check("efi_wx", "no memory of firmware is writable and executable", firmware),),
    "rodata_ro": (Check("data_alias", "data of the image is mapped in the image only", data_alias),),
    "module_rights": (
        Check("module_aliases", "modules' read-only data is not writable in the direct map", module_aliases),
        Check("bti", "BTI guards all text if it guards any", bti),
    ),
    "user_bit": (Check("kpti_trampoline", "user mode's tables have only the entry code", trampoline),),
}


def _text(kernel: Kernel) -> int:
    """``_text``, even if the part before _stext is not mapped."""
    return arm64_facts(kernel).image_place + kernel.image_slide.value & ALL


#: Where segments of /proc/kcore start (fs/proc/kcore.c): ``_text``, VMALLOC_START, MODULES_VADDR.
KCORE: Sequence[KcoreStart] = (
    ("vmalloc", start_of("vmalloc")),
    ("modules", lambda kernel: arm64_facts(kernel).modules.start),
    ("kernel_image", _text),
)

#: Values that the kernel recorded for dumps at boot, and also has in variables.
SAID: Sequence[Said] = (
    Said(
        "KERNELOFFSET",
        "_text minus KIMAGE_VADDR",
        lambda kernel: kernel.symbol("_text") - arm64_facts(kernel).image_place & ALL,
    ),
    Said("NUMBER(kimage_voffset)", "kimage_voffset", lambda kernel: kernel.value("kimage_voffset").value),
    Said("NUMBER(PHYS_OFFSET)", "memstart_addr", lambda kernel: kernel.value("memstart_addr").value),
    Said("SYMBOL(vmemmap)", "vmemmap by memstart_addr", lambda kernel: kernel.facts.memory_map.value),
)
