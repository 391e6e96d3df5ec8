# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: rules of ``kvintro check`` for this architecture only, and values repeated in VMCOREINFO."""

from __future__ import annotations

import re
import struct
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64.facts import x86_form
from kvintro.arch.x86_64.form import (
    ACCESSED,
    DEFAULT_TEXT,
    GLOBAL,
    PAGE_SIZE,
    PMD_SHIFT,
    PRESENT,
    PTI_USER_ROOT_BIT,
    PTRS_PER_TABLE,
)
from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel, Region
from kvintro.model import ALL, Absent, AddressRange, Asked, Placement, Unknown
from kvintro.paging import EFFECTIVE_WRITE, MAPPED
from kvintro.queries.audit.rights import (
    RIGHTS,
    WRITABLE_AND_EXECUTABLE,
    between,
    broken_in,
    half_name,
    look,
    rights_of,
)
from kvintro.queries.audit.running import KcoreStart, start_of, twice
from kvintro.queries.audit.verdict import MOST, Check, Finding, Said, Tally, Verdict, not_applicable
from kvintro.queries.placements import without
from kvintro.readers.command_line import given, options
from kvintro.readers.damage import Damage
from kvintro.readers.processes import each_mm, memory_of, physical_of

_PMD = 1 << PMD_SHIFT
_ANY = ((MAPPED, MAPPED),)
#: Kilobytes of a page, by its size in /proc/meminfo (in upper case).
_PAGE_KB = {"4K": 4, "2M": 2048, "1G": 1 << 20}


def pti(kernel: Kernel) -> Verdict:
    """arch/x86/mm/pti.c:pti_check_boottime_disable."""
    if kernel.isolation.value:
        return Verdict(kernel.isolation.provenance, 1)
    unknown = ""
    try:
        words: Tuple[str, ...] = options(kernel)
    except Unavailable as error:
        words = ()
        unknown = f"the reason why it is off is not known: {error.what}"
    by_hand: List[str] = [
        word
        for name in ("nopti", "pti", "mitigations")
        for word in given(words, name)
        if word in ("nopti", "pti=off", "mitigations=off")
    ]
    severity = "warning"
    if by_hand:
        why = f": {' '.join(by_hand)} on the command line"
    elif kernel.source.symbols != "none" and not kernel.has_symbol("pti_init", code=True):
        why, unknown = ": this kernel was built without it", ""
    elif unknown:
        why = ""
    else:
        # pti=auto: the kernel leaves it off if the processor is not vulnerable.
        why, severity = ": the kernel did not take this processor for one that needs it", "notice"
    found = Finding(None, None, f"page-table isolation is off{why}", severity)
    return Verdict(kernel.isolation.provenance, 1, (found,), unknown)


def firmware(kernel: Kernel) -> Verdict:
    """The tables of EFI's runtime services (arch/x86/platform/efi/efi_64.c)."""
    region = kernel.regions.efi
    found = kernel.locate(region)
    if isinstance(found, Absent):
        return not_applicable(found.reason)
    part = kernel.place(region).range
    (root,) = region.roots(kernel)
    ranges = kernel.new_tree(root.table).ranges(part.start, part.end)
    tally = Tally("mapped ranges")
    tally.findings += broken_in(ranges, part, WRITABLE_AND_EXECUTABLE)
    look(tally, "the EFI region of efi_mm", ranges, part)
    return tally.verdict()


#: Processors start in real mode in the first megabyte (realmode/init.c).
LOW_CODE = 1 << 20


def unexplained(
    kernel: Kernel, region: Region, findings: Sequence[Finding], tally: Tally
) -> Sequence[Finding]:
    """See :data:`kvintro.queries.audit.rights.Unexplained`."""
    return [finding for finding in findings if not _hypercalls(kernel, finding, tally)]


def _hypercalls(kernel: Kernel, finding: Finding, tally: Tally) -> bool:
    """Whether it is, or may be, the page for calls to Hyper-V (arch/x86/hyperv/hv_init.c)."""
    if finding.start is None or finding.end != finding.start + kernel.form.page_size - 1:
        return False
    if kernel.source.symbols == "none" or not kernel.has_symbol("hyperv_init", code=True):
        return False
    try:
        return kernel.value("hv_hypercall_pg").value == finding.start
    except Unavailable as error:
        tally.lacks(f"whether {finding.start:016x} is Hyper-V's page is not known: {error.what}")
        return True


def rounded(kernel: Kernel, region: Region) -> Sequence[AddressRange]:
    """Ranges where large pages also map memory beyond that intended: none."""
    return ()


def user_half(kernel: Kernel) -> Verdict:
    """User mode's tables have only what arch/x86/mm/pti.c clones."""
    if not kernel.isolation.value:
        return not_applicable(f"page-table isolation is off ({kernel.isolation.provenance})")
    half = kernel.form.kernel
    ranges = kernel.new_tree(kernel.root.value | PTI_USER_ROOT_BIT).ranges(half.start, half.end)
    tally = Tally("mapped ranges")
    look(tally, f"{half_name(kernel)}'s user half", ranges, half)
    allowed = list(_cloned(kernel))
    text = _image_text(kernel)
    for start, end, key in ranges.masked(RIGHTS).matching(_ANY, MOST):
        if text is not None and start in text and end in text and not key & EFFECTIVE_WRITE:
            continue
        left = without(AddressRange(start, end), allowed)
        tally.findings += [Finding(part.start, part.end, rights_of(key)) for part in left]
    return tally.verdict()


def _cloned(kernel: Kernel) -> Iterator[AddressRange]:
    """Kernel addresses that user mode's tables may map, regardless of rights."""
    for key in ("cpu_entry_area", "espfix", "vsyscall"):
        found = kernel.locate(key)
        if isinstance(found, Unknown):
            raise Unavailable(found.reason)
        if isinstance(found, Placement):
            yield found.range
    tss = kernel.symbol("cpu_tss_rw")
    count = kernel.value("nr_cpu_ids", 4).value
    if not 0 < count <= 1 << 13:
        raise Unavailable(f"nr_cpu_ids is {count}, which is invalid")
    for offset in struct.unpack(f"<{count}Q", kernel.read(kernel.symbol("__per_cpu_offset"), 8 * count)):
        address = tss + offset & ALL & -PAGE_SIZE
        yield AddressRange(address, address + PAGE_SIZE - 1)


def _image_text(kernel: Kernel) -> Optional[AddressRange]:
    """The part of the image that user mode's tables may map read-only.

    This is always the entry text, in pages of 2M. Without PCID and with pti=auto, it is all text and
    read-only data, which the kernel then makes global (pti_kernel_image_global_ok).
    """
    entry = between(kernel, "__entry_text_start", "__entry_text_end")
    whole = between(kernel, "_text", "__end_rodata_aligned")
    found = kernel.walk(whole.start)
    last = found.steps[-1].value if found.steps else None
    global_text = last is not None and last & GLOBAL and last & PRESENT
    entry_part = AddressRange(entry.start & -_PMD, (entry.end | (_PMD - 1)) & ALL)
    if global_text and whole.start not in entry_part:
        return whole
    return entry_part


def process_roots(kernel: Kernel) -> Verdict:
    """Every process has the kernel half of init_top_pgt (pgd_ctor, and pti.c for the user half)."""
    form = x86_form(kernel)
    first = form.kernel_entries().start
    slot = form.index(form.ldt_remap.start, form.levels)
    own = _entries(kernel, kernel.root.value)
    own_user = _entries(kernel, kernel.root.value | PTI_USER_ROOT_BIT) if kernel.isolation.value else None
    tally = Tally("processes")
    if not any(own[first:]):
        tally.lacks(f"{kernel.kernel_root.owner} maps nothing in the kernel half")
    damage = Damage()
    for pid, root in _processes(kernel, damage):
        tally.compared("", 1)
        for ours, theirs, name in (
            (own, root, "kernel"),
            (own_user, root | PTI_USER_ROOT_BIT, "user"),
        ):
            if ours is None:
                continue
            entries = _entries(kernel, theirs)
            if entries[first:] == ours[first:]:
                continue
            for index in range(first, PTRS_PER_TABLE):
                # The LDT belongs to a process, and vmalloc's entries are added on first use.
                if index == slot or entries[index] in (ours[index], 0):
                    continue
                if _same_but_accessed(entries[index], ours[index]):
                    continue
                start = form.sign_extend(index << form.pgdir_shift)
                what = (
                    f"pid {pid}, {name} half: entry {entries[index]:016x}, the kernel's is {ours[index]:016x}"
                )
                tally.findings.append(Finding(start, start + (1 << form.pgdir_shift) - 1, what))
    for note in damage.notes:
        tally.lacks(note)
    return tally.verdict()


def _same_but_accessed(one: int, other: int) -> bool:
    return not (one ^ other) & ~ACCESSED


def _entries(kernel: Kernel, table: int) -> Tuple[int, ...]:
    try:
        return struct.unpack("<512Q", kernel.read_physical(table, PAGE_SIZE))
    except NotInDump as error:
        raise Unavailable(error.what) from error


def _processes(kernel: Kernel, damage: Damage) -> Iterator[Tuple[int, int]]:
    """(pid, physical address of the root) of each process with its own memory.

    Both of the kernel's collections are read: its list and the tree of process numbers. A process can be
    hidden from one of them.
    """
    from drgn.helpers.linux.pid import for_each_task

    if kernel.source.types == "none":
        raise Unavailable("processes cannot be listed without types")
    seen = set()
    for process in each_mm(kernel, damage):
        seen.add(process.mm)
        yield process.pid, memory_of(kernel, process).root
    try:
        for count, task in enumerate(for_each_task(kernel.prog)):
            if count > 1 << 22:
                raise Unavailable("the tree of process numbers does not end")
            mm = task.mm.read_()
            if mm and mm.value_() not in seen:
                seen.add(mm.value_())
                yield task.pid.value_(), physical_of(kernel, mm.pgd.value_())
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise Unavailable(f"the tree of process numbers cannot be read: {error}") from error


def meminfo(kernel: Kernel) -> Verdict:
    """Compare DirectMap4k and others (arch/x86/mm/pat/set_memory.c:arch_report_meminfo) with the page tables.

    The kernel counts some large pages twice while it boots. It also counts blocks that it splits in the
    image, but not those that it splits for a memory error; see :mod:`kvintro.regions.direct_map`.
    """

    def parse(lines: List[str]) -> Dict[str, int]:
        found = [re.match(r"DirectMap(4k|2M|1G): +(\d+) kB", line) for line in lines]
        return {m[1].upper(): int(m[2]) // _PAGE_KB[m[1].upper()] for m in found if m}

    def ours() -> Dict[str, int]:
        found = kernel.regions.direct_map.contents(kernel, Asked())
        if found.partial:
            raise Unavailable(found.notes[0] if found.notes else "the direct map could not be read whole")
        split = int(found.totals["blocks_split_in_image"]) - int(
            found.totals.get("blocks_split_by_hwpoison", 0)
        )
        more = {"4K": PTRS_PER_TABLE * split, "2M": -split}
        return {name: int(found.totals[f"pages_of_{name}"]) + more.get(name, 0) for name in _PAGE_KB}

    before, found, after = twice("/proc/meminfo", parse, ours)
    tally = Tally("pages")
    for name in _PAGE_KB:
        if name not in before and name not in after:
            # DirectMap1G exists only on processors with such pages (arch_report_meminfo).
            if found[name]:
                tally.lacks(f"/proc/meminfo does not count pages of {name}")
        elif before.get(name) != after.get(name):
            tally.lacks(f"/proc/meminfo changed while it was read: pages of {name}", changing=True)
        else:
            tally.compared(name, before[name], may_be_empty=True)
            if before[name] < found[name] or (name == "4K" and before[name] != found[name]):
                what = (
                    f"/proc/meminfo counts {before[name]} pages of {name}, the page tables have {found[name]}"
                )
                tally.findings.append(Finding(None, None, what))
    return tally.verdict()


#: By the key of the shared rule after which they are listed.
CHECKS: Mapping[str, Sequence[Check]] = {
    "kaslr": (Check("pti", "user mode runs on its own page tables", pti),),
    "wx": (Check("efi_wx", "no memory of firmware is writable and executable", firmware),),
    "user_bit": (
        Check("pti_user_half", "user mode's tables have only what entering the kernel needs", user_half),
        Check("process_roots", "all processes have the kernel's own half", process_roots),
    ),
    "proc_iomem": (
        Check(
            "proc_meminfo", "/proc/meminfo counts the pages of the direct map correctly", meminfo, live=True
        ),
    ),
}


#: Where segments of /proc/kcore start (fs/proc/kcore.c, arch/x86/mm/init_64.c).
KCORE: Sequence[KcoreStart] = tuple((key, start_of(key)) for key in ("vmalloc", "modules", "kernel_image"))


def _variable(name: str, size: int = 8) -> Callable[[Kernel], int]:
    return lambda kernel: kernel.value(name, size).value


#: Values that the kernel recorded for dumps at boot, and also has in variables.
SAID: Sequence[Said] = (
    Said("KERNELOFFSET", "_text minus its default", lambda kernel: kernel.symbol("_text") - DEFAULT_TEXT),
    Said("NUMBER(phys_base)", "phys_base", _variable("phys_base")),
    Said("NUMBER(pgtable_l5_enabled)", "__pgtable_l5_enabled", _variable("__pgtable_l5_enabled", 4), 1),
    Said("NUMBER(VMALLOC_START)", "vmalloc_base", _variable("vmalloc_base")),
    Said("SYMBOL(vmemmap)", "vmemmap_base", _variable("vmemmap_base")),
    Said("NUMBER(sme_mask)", "sme_me_mask", _variable("sme_me_mask")),
)
