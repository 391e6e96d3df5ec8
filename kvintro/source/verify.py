# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks that need symbols: whether the file is complete, and whether VMCOREINFO is right."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

import drgn

from kvintro.errors import NotADump, WrongVmcoreinfo
from kvintro.source.dump import RAW, TRUNCATED
from kvintro.source.kallsyms import READ_ERRORS
from kvintro.source.note import parse, what_is_missing
from kvintro.source.opened import Source
from kvintro.source.translation import space_of
from kvintro.source.vmcoreinfo import build_ids_in, identity_of, text_at

_MAX_NOTES = 64 << 10
_MAX_REGIONS = 4000
_NOMAP = 4  # MEMBLOCK_NOMAP
_ONE_PIECE = (
    "it is not known whether this file's RAM is in one piece, because its kernel does not keep memblock: "
    "memory after a gap may be at other addresses; take the dump as LiME or ELF, which contain addresses"
)


def check_end(source: Source) -> None:
    """Check whether a file of physical memory is complete, using the end of RAM according to its kernel.

    All other formats record whether they are complete.
    """
    if source.kind != "core" or source.complete is not None or source.kallsyms is None:
        return
    address = source.kallsyms.lookup("max_pfn")
    if address is None or not source.segments:
        return
    space = space_of(source)
    if space is None:
        return
    last = max(segment.paddr + segment.filesz for segment in source.segments)
    try:
        # Page tables may be in the missing part, so the variable is read at its physical address.
        end = source.prog.read_u64(space.physical(address), True) << space.form.page_shift
    except READ_ERRORS:
        # The image itself may extend beyond the end of the file, with this variable in the missing part.
        end = space.physical(address) + 8
        if end <= last:
            return
    if end > last and source.format == "AVML":
        return  # AVML omits zeros, which may be at the end.
    # RAM may begin late and have gaps, but the file has everything up to its end.
    source.complete = end <= last
    if not source.complete:
        source.warnings.append(TRUNCATED)


def check_start(source: Source) -> None:
    """Compare a file that begins with RAM with the RAM of its kernel (``memblock.memory``).

    The physical address of the file's beginning was found with the image and its page tables. It applies to
    the whole file only if RAM is contiguous.

    :raises NotADump: RAM has gaps that the file does not have, or begins before the file does.
    """
    if source.format != RAW or not source.segments or not source.segments[0].paddr:
        return
    first, size = source.segments[0].paddr, source.segments[0].filesz
    ram = _ram(source)
    if not ram:
        source.warnings.append(_ONE_PIECE)
        return
    gap = any(one[1] != two[0] for one, two in zip(ram, ram[1:]))
    if ram[0][0] < first or (gap and ram[-1][1] > first + size):
        raise NotADump(
            f"{source.label}: its kernel has RAM from {ram[0][0]:#x} to {ram[-1][1] - 1:#x}"
            f"{' with gaps' if gap else ''}, and this file does not contain it in one piece",
            "take the dump as LiME or ELF, which contain addresses",
        )


def _ram(source: Source) -> List[Tuple[int, int]]:
    """(start, end) of the kernel's RAM, in ascending order, ends exclusive; empty if unknown.

    arm64 and others keep memblock (include/linux/memblock.h) after boot (CONFIG_ARCH_KEEP_MEMBLOCK). It
    includes firmware's flash, and some RAM that firmware keeps, as memory that is not mapped.
    """
    lookup = source.kallsyms.lookup if source.kallsyms is not None else lambda name: None
    address, start, end = (lookup(name) for name in ("memblock", "__init_begin", "__init_end"))
    # Without CONFIG_ARCH_KEEP_MEMBLOCK its memory is freed, and may be anything now.
    if address is None or (start is not None and end is not None and start <= address < end):
        return []
    ram: List[Tuple[int, int]] = []
    try:
        memory = drgn.Object(source.prog, "struct memblock", address=address).memory
        for region in memory.regions[: min(memory.cnt.value_(), _MAX_REGIONS)]:
            base, size = region.base.value_(), region.size.value_()
            if not ram and region.flags.value_() & _NOMAP:
                continue  # before the first mapped region
            ram.append((base, base + size))
    except (LookupError, AttributeError, TypeError, *READ_ERRORS):
        return []
    return ram


def check_vmcoreinfo(source: Source, given: Optional[str]) -> None:
    """Compare VMCOREINFO with the kernel's own copy of it and with the build id, which need symbols.

    Without symbols, only the values that are needed to translate addresses were compared. If a dump's note
    differs from the kernel's copy, the kernel's copy is used.

    :param given: the file of ``--vmcoreinfo``, if the text is from there.
    :raises WrongVmcoreinfo: the file's text differs.
    """
    if source.kallsyms is None:
        return
    own = _kernels_copy(source)
    different = sorted(key for key, value in own.items() if source.vmcoreinfo.get(key) != value)
    if different:
        key = different[0]
        said = source.vmcoreinfo.get(key)
        reason = f"it says {key}={said}" if said is not None else f"it has no {key}"
        reason += f", and the kernel's own copy says {key}={own[key]}"
        if given is not None:
            raise WrongVmcoreinfo(
                f"{given} is not the VMCOREINFO of {source.label}: {reason}",
                "run it without --vmcoreinfo: the kernel's own copy is in the memory",
            )
        origin = source.vmcoreinfo_origin
        source.warnings.append(f"VMCOREINFO ({origin}) was rejected: {reason}; the kernel's own copy is used")
        source.vmcoreinfo, source.vmcoreinfo_origin = own, "the kernel's own copy in memory"
    if source.kind != "live" or given is not None:
        _check_build_id(source, given)


def _kernels_copy(source: Source) -> Dict[str, str]:
    """The lines of the VMCOREINFO that the kernel prepared for a crash; empty if it cannot be read.

    A copy with other page tables than those used to read it is damaged and ignored.
    kernel/crash_core.c:crash_save_vmcoreinfo_init, kernel/vmcore_info.c since 6.9. At a crash,
    crash_save_vmcoreinfo() adds the line CRASHTIME to it, before it is dumped.
    """
    assert source.kallsyms is not None
    pointer = source.kallsyms.lookup("vmcoreinfo_note")
    if pointer is None:
        return {}
    read = source.prog.read
    try:
        text = text_at(lambda at, size: bytes(read(at, size)), source.prog.read_u64(pointer))
    except READ_ERRORS:
        return {}
    if text is None or what_is_missing(text) is not None:
        return {}
    lines = parse(text)
    return lines if identity_of(lines) == identity_of(source.vmcoreinfo) else {}


def _check_build_id(source: Source, given: Optional[str]) -> None:
    """Check that the image has VMCOREINFO's build id.

    :raises WrongVmcoreinfo: it does not, and the user gave the text.
    """
    assert source.kallsyms is not None
    said = source.vmcoreinfo.get("BUILD-ID")
    start, stop = (source.kallsyms.lookup(name) for name in ("__start_notes", "__stop_notes"))
    if said is None or start is None or stop is None or not 0 < stop - start <= _MAX_NOTES:
        return
    try:
        found = [data.hex() for _, data in build_ids_in(start, source.prog.read(start, stop - start))]
    except READ_ERRORS:
        return
    if not found or said in found:
        return
    reason = f"its BUILD-ID is {said}, and the image in memory has {found[0]}"
    if given is not None:
        raise WrongVmcoreinfo(
            f"{given} is not the VMCOREINFO of {source.label}: {reason}",
            "is it from the boot that was dumped?",
        )
    source.warnings.append(f"VMCOREINFO is from another build: {reason}")
