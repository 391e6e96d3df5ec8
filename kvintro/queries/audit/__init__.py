# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does the kernel agree with itself? Each rule is one function, and all are in :data:`CHECKS`.

A running kernel changes while it is read: a module being loaded, text being patched or a page being freed may
show for a moment what a rule forbids. :func:`audit` takes for a finding only what is there every time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Callable, Iterable, List, Optional, Sequence, Tuple

from kvintro.kernel import Kernel
from kvintro.queries.audit import frames, lists, places, protections, rights, running
from kvintro.queries.audit.verdict import SEVERITIES, Check, Finding, Verdict, not_applicable

__all__ = ("CHECKS", "SEVERITIES", "Check", "Finding", "Verdict", "audit")

CHECKS: Tuple[Check, ...] = (
    Check("kaslr", "KASLR moved the image and the memory regions", protections.kaslr),
    Check("pti", "user mode runs on page tables of its own", protections.pti),
    Check("tables", "page tables of image, direct map and memory map can be used", places.tables),
    Check("overlap", "no two regions overlap", places.overlap),
    Check("vmcoreinfo", "bounds are what VMCOREINFO and the source's segments say", places.vmcoreinfo),
    Check("linear", "the direct map and the image are mapped where their bases say", places.linear),
    Check("strays", "nothing is mapped where no region is", places.strays),
    Check("wx", "nothing is writable and executable", rights.writable_and_executable),
    Check("efi_wx", "nothing of firmware is writable and executable", rights.firmware),
    Check("text_ro", "the kernel's text cannot be written", rights.writable_text),
    Check("rodata_ro", "read-only data cannot be written", rights.writable_rodata),
    Check("data_nx", "data of the image cannot be executed", rights.executable_data),
    Check("direct_map_nx", "the direct map cannot be executed", rights.executable_direct_map),
    Check("region_rights", "only text, modules and vsyscall can be executed", rights.region_rights),
    Check("module_rights", "modules' text cannot be written, their data not executed", rights.module_rights),
    Check("user_bit", "user mode has no access to the kernel half", rights.user_bit),
    Check("pti_user_half", "user mode's tables have only what entering the kernel needs", rights.user_half),
    Check("process_roots", "all processes have the kernel's own half", rights.process_roots),
    Check("contents", "what the kernel lists in its regions is mapped as listed", lists.contents),
    Check("vmap_areas", "areas of vmalloc and modules do not overlap", lists.areas_apart),
    Check("vmap_strays", "nothing is mapped in them outside an area", lists.outside_areas),
    Check("table_pages", "page tables lie in pages that are page tables", frames.tables),
    Check("mapped_pages", "no free page is mapped", frames.free_pages),
    Check("proc_kcore", "/proc/kcore has the regions where they are", running.kcore, live=True),
    Check("proc_iomem", "/proc/iomem has the same memory", running.iomem, live=True),
    Check(
        "proc_meminfo", "/proc/meminfo counts the pages of the direct map right", running.meminfo, live=True
    ),
    Check("proc_modules", "/proc/modules has the same modules", running.modules, live=True),
    Check("proc_vmallocinfo", "/proc/vmallocinfo has the same areas", running.vmallocinfo, live=True),
)

#: How often a running kernel is asked about what was found, or what changed while it was read. Its tables are
#: read before its lists, and a busy one hands out and takes back one place over and over: what shows one time
#: in three must not show each time.
_ATTEMPTS = 10
_PAUSE = 0.2


def audit(
    kernel: Kernel, *, progress: Callable[[Sequence[Check]], Iterable[Check]] = lambda checks: checks
) -> List[Tuple[Check, Verdict]]:
    """All rules in order, those among them that this source cannot be asked.

    :param progress: is handed the rules that are applied, and iterated over while they are.
    """
    running = kernel.source.kind == "live"
    found = {c.key: not_applicable("not of the running kernel") for c in CHECKS if c.live and not running}
    for check in progress([check for check in CHECKS if check.key not in found]):
        found[check.key] = _settled(check, kernel)
    return [(check, found[check.key]) for check in CHECKS]


def _settled(check: Check, kernel: Kernel) -> Verdict:
    """The verdict, of a running kernel the one that it comes to.

    A defect counts if it is there every time. One look that finds none settles it; where each finds another,
    nothing is known, and likewise where the source changes during each.
    """
    verdict = check.verdict(kernel)
    if not kernel.source.live:
        return verdict
    lasting = {_evidence(finding) for finding in verdict.defects}
    for _ in range(_ATTEMPTS - 1):
        if not verdict.defects and not verdict.changing:
            return verdict
        time.sleep(_PAUSE)
        verdict = check.verdict(type(kernel)(kernel.source))
        lasting &= {_evidence(finding) for finding in verdict.defects}
    passing = [finding for finding in verdict.defects if _evidence(finding) not in lasting]
    if not passing:
        return verdict
    others = tuple(finding for finding in verdict.findings if finding not in passing)
    if lasting:
        return replace(verdict, findings=others)
    why = f"each of {_ATTEMPTS} looks found something else, the last one: {passing[0].what}"
    return replace(verdict, findings=others, unknown="; ".join(filter(None, (verdict.unknown, why))))


def _evidence(finding: Finding) -> Tuple[Optional[int], str]:
    return finding.start, finding.what
