# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules about protections that are off or were not built in: not an error, but good to know."""

from __future__ import annotations

from kvintro.kernels import Kernel
from kvintro.queries.audit.verdict import Finding, Tally, Verdict


def kaslr(kernel: Kernel) -> Verdict:
    """What boot/compressed/kaslr.c and mm/kaslr.c of arch/x86 randomise, and which of it did not move."""
    draws = []
    for key in ("kernel_image", "direct_map", "vmalloc", "vmemmap"):
        region = next(r for r in kernel.regions if r.key == key)
        draws += list(region.randomised(kernel))
    off = [draw for draw in draws if draw.state == "off"]
    # Without KASLR attackers know all addresses. With KASAN that is a deliberate choice.
    severity = "warning" if len(off) == len(draws) else "notice"
    findings = [Finding(d.actual, None, f"{d.what} is not moved: {d.note}", severity) for d in off]
    findings += [
        Finding(d.actual, None, f"{d.what} is not moved: its default place was chosen", "notice")
        for d in draws
        if d.state == "on" and d.displacement == 0
    ]
    tally = Tally("bases")
    tally.findings += findings
    # A base that differs from its default was moved, even if its possible places are unknown.
    missing = [draw.what for draw in draws if draw.state == "unknown" and not draw.displacement]
    if missing:
        tally.lacks(f"not known for {', '.join(missing)}")
    tally.compared("", len(draws) - len(missing))
    return tally.verdict()
