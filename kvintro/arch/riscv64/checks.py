# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: rules of ``kvintro check`` for this architecture only, and values repeated in VMCOREINFO."""

from __future__ import annotations

from itertools import islice
from typing import Iterator, Mapping, Sequence

from kvintro.arch.riscv64.facts import riscv_facts
from kvintro.kernels import Kernel, Region, Trait
from kvintro.model import ALL, AddressRange, Placement
from kvintro.paging import EFFECTIVE_EXEC, MAPPED, Ranges
from kvintro.queries.audit.rights import RIGHTS, areas_of_code
from kvintro.queries.audit.running import KcoreStart, start_of
from kvintro.queries.audit.verdict import MOST, Check, Finding, Said, Tally

#: No physical memory is expected to contain code because of its address.
LOW_CODE = 0
_MAY_EXECUTE = ((MAPPED | EFFECTIVE_EXEC, MAPPED | EFFECTIVE_EXEC),)
_MOST_PAGES = 1 << 16
CHECKS: Mapping[str, Sequence[Check]] = {}


def unexplained(
    kernel: Kernel, region: Region, findings: Sequence[Finding], tally: Tally
) -> Sequence[Finding]:
    """See :data:`kvintro.queries.audit.rights.Unexplained`.

    arch/riscv/mm/pageattr.c:__set_memory gives pages of modules the same rights in the direct map, EXEC too.
    """
    if Trait.AREAS in region.traits:
        # BPF programs and slots of kprobes.
        allowed = areas_of_code(kernel, kernel.place(region).range)
        return [f for f in findings if not any(f.start in area and f.end in area for area in allowed)]
    place = riscv_facts(kernel).linear_window
    if not findings or findings[0].start not in place:
        return findings
    page, offset, ranges = kernel.form.page_size, kernel.linear_offset.value, kernel.kernel_ranges
    code = set()
    for other in kernel.regions:
        found = kernel.locate(other) if Trait.AREAS in other.traits else None
        if isinstance(found, Placement):
            for address in _pages(ranges, found.range, page):
                code.add(kernel.walk(address).physical)
    if len(code) > _MOST_PAGES:
        tally.lacks(f"only the first {_MOST_PAGES} pages of code were looked at")
    left = (at for at in _pages(ranges, place, page) if at - offset & ALL not in code)
    return [Finding(at, at + page - 1, "no area of code has this page") for at in islice(left, MOST)]


def _pages(ranges: Ranges, where: AddressRange, page: int) -> Iterator[int]:
    """Addresses of pages that may be executed, up to a limit."""
    found = ranges.clip(where.start, where.end).masked(RIGHTS).matching(_MAY_EXECUTE, _MOST_PAGES)
    return islice(
        (at for start, end, _ in found for at in range(start & -page, end + 1, page)), _MOST_PAGES + 1
    )


def rounded(kernel: Kernel, region: Region) -> Sequence[AddressRange]:
    """Ranges where large pages also map memory beyond that intended."""
    # The device tree is mapped in two blocks of 2M, whatever its size.
    return (riscv_facts(kernel).device_tree,) if Trait.SLOTS in region.traits else ()


#: Where segments of /proc/kcore start (fs/proc/kcore.c): ``_text``, VMALLOC_START, MODULES_VADDR.
KCORE: Sequence[KcoreStart] = (
    *((key, start_of(key)) for key in ("vmalloc", "modules")),
    ("kernel_image", lambda kernel: kernel.text.value),
)
#: Values that the kernel recorded for dumps at boot, and also has in variables.
SAID: Sequence[Said] = (
    Said("NUMBER(phys_ram_base)", "phys_ram_base", lambda kernel: kernel.value("phys_ram_base").value),
    Said(
        "NUMBER(MODULES_END)", "_start", lambda kernel: kernel.symbol("_start") & -kernel.form.page_size & ALL
    ),
)
