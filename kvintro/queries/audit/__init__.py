# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does the kernel agree with itself? Each rule is one function, and all are in :data:`CHECKS`.

A running kernel changes while it is read: a module being loaded, text being patched or a page being freed may
show for a moment what a rule forbids. :func:`audit` takes for a finding only what is there every time.
"""

from __future__ import annotations

import time
from typing import Callable, Iterable, List, Sequence, Tuple

from kvintro.kernel import Kernel
from kvintro.queries.audit import frames, lists, places, protections, rights, running
from kvintro.queries.audit.verdict import SEVERITIES, Check, Finding, Verdict, conclude

__all__ = ("CHECKS", "SEVERITIES", "Check", "Finding", "Verdict", "audit")

CHECKS: Tuple[Check, ...] = (
    Check("kaslr", "KASLR moved the image and the memory regions", protections.kaslr),
    Check("pti", "user mode runs on page tables of its own", protections.pti),
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

#: How often a running kernel is asked about what was found. Its tables are read before its lists, and a busy
#: one hands out and takes back one place over and over: what shows one time in three must not show each time.
_ATTEMPTS = 10
_PAUSE = 0.2


def audit(
    kernel: Kernel, *, progress: Callable[[Sequence[Check]], Iterable[Check]] = lambda checks: checks
) -> List[Tuple[Check, Verdict]]:
    """All rules that this source can be asked, in order.

    :param progress: is handed the rules, and iterated over while they are applied.
    """
    wanted = [check for check in CHECKS if kernel.source.kind == "live" or not check.live]
    return [(check, _settled(check, kernel)) for check in progress(wanted)]


def _settled(check: Check, kernel: Kernel) -> Verdict:
    verdict = check.verdict(kernel)
    if not kernel.source.live:
        return verdict
    for _ in range(_ATTEMPTS - 1):
        if not any(finding.severity == "defect" for finding in verdict.findings):
            break
        time.sleep(_PAUSE)
        again = check.verdict(type(kernel)(kernel.source))
        seen = {(finding.start, finding.what) for finding in again.findings}
        lasting = [f for f in verdict.findings if (f.start, f.what) in seen]
        # What moved in between was caught in the act.
        verdict = conclude(lasting, "", again.detail) if again.state != "unknown" else again
    return verdict
