# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that check whether the kernel is consistent. Each rule is one function; :func:`checks_of` lists them.

Rules that every architecture has are in this package. An architecture has further ones in its ``checks``
module: ``CHECKS``, by the key of the shared rule that they come after.

A running kernel changes while it is read: a module being loaded, text being patched or a page being freed may
briefly show what a rule forbids. :func:`audit` reports only findings that occur every time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Callable, Iterable, List, Mapping, Optional, Protocol, Sequence, Tuple

from kvintro.arch import Architecture, part
from kvintro.entry_points import CHECKS as CHECKS_GROUP
from kvintro.entry_points import added
from kvintro.kernels import Kernel
from kvintro.queries.audit import frames, lists, places, protections, rights, running
from kvintro.queries.audit.verdict import SEVERITIES, Check, Finding, Verdict, not_applicable

__all__ = ("SEVERITIES", "SHARED", "AddedCheck", "Check", "Finding", "Verdict", "audit", "checks_of")

#: The rules that every architecture has.
SHARED: Tuple[Check, ...] = (
    Check("kaslr", "KASLR moved the image and the memory regions", protections.kaslr),
    Check("tables", "page tables of image, direct map and memory map can be used", places.tables),
    Check("overlap", "no two regions overlap", places.overlap),
    Check("vmcoreinfo", "bounds agree with VMCOREINFO and the source's segments", places.vmcoreinfo),
    Check("linear", "the direct map and the image are mapped where their bases say", places.linear),
    Check("strays", "nothing is mapped outside the regions", places.strays),
    Check("wx", "nothing is writable and executable", rights.writable_and_executable),
    Check("text_ro", "the kernel's text cannot be written", rights.writable_text),
    Check("rodata_ro", "read-only data cannot be written", rights.writable_rodata),
    Check("data_nx", "data of the image cannot be executed", rights.executable_data),
    Check("direct_map_nx", "the direct map cannot be executed", rights.executable_direct_map),
    Check("region_rights", "only text, modules and other code can be executed", rights.region_rights),
    Check(
        "module_rights",
        "modules' text cannot be written, and their data cannot be executed",
        rights.module_rights,
    ),
    Check("user_bit", "user mode has no access to the kernel half", rights.user_bit),
    Check("contents", "what the kernel lists in its regions is mapped as listed", lists.contents),
    Check("vmap_areas", "areas of vmalloc and modules do not overlap", lists.areas_apart),
    Check("vmap_strays", "vmalloc and modules map nothing outside areas", lists.outside_areas),
    Check("table_pages", "the page frames of page tables are marked as page tables", frames.tables),
    Check("mapped_pages", "no free page is mapped", frames.free_pages),
    Check("proc_kcore", "/proc/kcore has the regions at the same addresses", running.kcore, live=True),
    Check("proc_iomem", "/proc/iomem has the same memory", running.iomem, live=True),
    Check("proc_modules", "/proc/modules has the same modules", running.modules, live=True),
    Check("proc_vmallocinfo", "/proc/vmallocinfo has the same areas", running.vmallocinfo, live=True),
)

#: Maximum number of times that a rule is applied to a running kernel, after a finding or a change during the
#: read. The kernel's tables are read before its lists, and a busy kernel allocates and frees one place over
#: and over: what shows one time in three must not show each time.
_ATTEMPTS = 10
_PAUSE = 0.2


class AddedCheck(Protocol):
    """A rule of another package. The entry point's name is its key.

    :ivar interface: ``1``.
    :ivar title: the rule in one line.
    """

    interface: int
    title: str

    def judge(self, kernel: Kernel) -> Verdict:
        """Apply the rule.

        :raises Unavailable: something that it needs cannot be read. Its result is then unknown.
        """


def checks_of(arch: Architecture) -> Tuple[Check, ...]:
    """All rules of kvintro itself for kernels of an architecture, in order."""
    own: Mapping[str, Sequence[Check]] = part(arch, "checks").CHECKS
    return tuple(check for shared in SHARED for check in (shared, *own.get(shared.key, ())))


def _added(checks: Sequence[Check]) -> Tuple[Check, ...]:
    """Rules of other packages."""
    found: Mapping[str, AddedCheck] = added(CHECKS_GROUP, ("title", "judge"), tuple(c.key for c in checks))
    return tuple(Check(key, check.title, check.judge) for key, check in found.items())


def audit(
    kernel: Kernel, *, progress: Callable[[Sequence[Check]], Iterable[Check]] = lambda checks: checks
) -> List[Tuple[Check, Verdict]]:
    """Apply all rules in order, including those that cannot be applied to this source.

    :param progress: gets the rules that are applied and yields them again while they are applied.
    """
    checks = checks_of(kernel.arch)
    checks += _added(checks)
    running = kernel.source.kind == "live"
    found = {c.key: not_applicable("only for the running kernel") for c in checks if c.live and not running}
    for check in progress([check for check in checks if check.key not in found]):
        found[check.key] = _settled(check, kernel)
    return [(check, found[check.key]) for check in checks]


def _settled(check: Check, kernel: Kernel) -> Verdict:
    """The verdict; for a running kernel, the verdict after several attempts.

    A defect counts only if it occurs in every attempt. One attempt without a defect is enough to clear it.
    The result is unknown if each attempt finds another defect, or if the source changes during each.
    """
    verdict = check.verdict(kernel)
    if not kernel.source.live:
        return verdict
    lasting = {_evidence(finding) for finding in verdict.defects}
    for _ in range(_ATTEMPTS - 1):
        if not verdict.defects and not verdict.changing:
            return verdict
        time.sleep(_PAUSE)
        verdict = check.verdict(kernel.fresh())
        lasting &= {_evidence(finding) for finding in verdict.defects}
    passing = [finding for finding in verdict.defects if _evidence(finding) not in lasting]
    if not passing:
        return verdict
    others = tuple(finding for finding in verdict.findings if finding not in passing)
    if lasting:
        return replace(verdict, findings=others)
    why = f"each of {_ATTEMPTS} attempts found a different problem; the last one: {passing[0].what}"
    return replace(verdict, findings=others, unknown="; ".join(filter(None, (verdict.unknown, why))))


def _evidence(finding: Finding) -> Tuple[Optional[int], str]:
    return finding.start, finding.what
