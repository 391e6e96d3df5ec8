# SPDX-License-Identifier: LGPL-2.1-or-later
"""Protections that are switched off, or were not built in: not wrong, and good to know."""

from __future__ import annotations

from typing import List, Tuple

from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.queries.audit.verdict import Finding, Tally, Verdict
from kvintro.queries.command_line import given, options


def kaslr(kernel: Kernel) -> Verdict:
    """What boot/compressed/kaslr.c and mm/kaslr.c of arch/x86 draw, and what of it did not move."""
    draws = []
    for key in ("kernel_image", "direct_map", "vmalloc", "vmemmap"):
        region = next(r for r in kernel.regions if r.key == key)
        draws += list(region.randomised(kernel))
    off = [draw for draw in draws if draw.state == "off"]
    # Without it everything is where every attacker knows it; with KASAN it is a price somebody chose.
    severity = "warning" if len(off) == len(draws) else "notice"
    findings = [Finding(d.actual, None, f"{d.what} is not moved: {d.note}", severity) for d in off]
    findings += [
        Finding(d.actual, None, f"{d.what} is not moved: its default place was drawn", "notice")
        for d in draws
        if d.state == "on" and d.displacement == 0
    ]
    tally = Tally("bases")
    tally.findings += findings
    # A base that lies elsewhere than by default was moved, whatever it was drawn from.
    missing = [draw.what for draw in draws if draw.state == "unknown" and not draw.displacement]
    if missing:
        tally.lacks(f"not known of {', '.join(missing)}")
    tally.compared("", len(draws) - len(missing))
    return tally.verdict()


def pti(kernel: Kernel) -> Verdict:
    """arch/x86/mm/pti.c:pti_check_boottime_disable."""
    if kernel.pti.value:
        return Verdict(kernel.pti.provenance, 1)
    unknown = ""
    try:
        words: Tuple[str, ...] = options(kernel)
    except Unavailable as error:
        words = ()
        unknown = f"why it is off: {error.what}"
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
        # pti=auto: the kernel leaves it off where the processor does not leak.
        why, severity = ": the kernel did not take this processor for one that needs it", "notice"
    found = Finding(None, None, f"page-table isolation is off{why}", severity)
    return Verdict(kernel.pti.provenance, 1, (found,), unknown)
