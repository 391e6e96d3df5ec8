# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in an idle guest of arm64 or riscv64, as root: every command on /proc/kcore, compared with /proc.

``python3 -m tests.vm.inside.foreign`` prints one JSON document; the test outside asserts on it.
"""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Callable, Dict, List

from kvintro.opening import kernel_of, open_kernel
from kvintro.reports.layout import layout
from kvintro.source import Request
from tests.vm.inside.check import (
    REPORT,
    RUNS,
    SAVED,
    Checks,
    ask,
    check_modules,
    check_pages,
    check_translate,
    check_user,
    check_vmalloc,
    kallsyms,
    kcore_loads,
    number,
    run,
    workload,
)


def check_layout(checks: Checks) -> None:
    """Bounds against /proc/kcore's segments and /proc/kallsyms."""
    document = ask(checks, "layout")
    if document is None:
        return
    checks.kernel = document["kernel"]
    checks.same("layout: live", document["kernel"]["live"], True)
    checks.same("layout: release", document["kernel"]["release"], os.uname().release)
    rows = {row["key"]: row for row in document["regions"] if row["kind"] == "region"}
    loads = kcore_loads()
    starts = {start for start, _ in loads}
    checks.same("layout: vmalloc in /proc/kcore", number(rows["vmalloc"]["start"]) in starts, True)
    symbols = kallsyms()
    image = rows["kernel_image"]
    first, block = ("_start", 2 << 20) if os.uname().machine == "riscv64" else ("_text", 1)
    checks.same(f"layout: {first}", number(image["start"]), symbols[first])
    checks.same("layout: _end", number(image["end"]) + 1, -(-symbols["_end"] // block) * block)
    low, high = number(rows["direct_map"]["start"]), number(rows["direct_map"]["end"])
    ram = [(virtual, physical) for virtual, physical in loads if low <= virtual <= high]
    checks.same("layout: RAM in /proc/kcore", bool(ram), True)
    places = ask(checks, "translate", *[f"{virtual:x}" for virtual, _ in ram])["results"]
    for (_, physical), row in zip(ram, places):
        checks.same("layout: RAM in /proc/kcore", number(row["physical"]), physical)


def check_image(checks: Checks) -> None:
    """Symbols translate to their addresses in /proc/kallsyms and /proc/iomem."""
    document = ask(checks, "translate", "_text", "init_task")
    if document is None:
        return
    symbols = kallsyms()
    for row, name in zip(document["results"], ("_text", "init_task")):
        checks.same(f"translate: {name}", number(row["virtual"]), symbols[name])
    lines = Path("/proc/iomem").read_text().splitlines()
    code = next(line for line in lines if line.strip().endswith("Kernel code"))
    start = int(code.split("-")[0], 16)
    checks.same("translate: _text in /proc/iomem", number(document["results"][0]["physical"]), start)


def check_check(checks: Checks) -> None:
    """This kernel is healthy, and /proc agrees with its memory."""
    document = ask(checks, "check")
    if document is None:
        return
    defects = [row for row in document["findings"] if row["severity"] == "defect"]
    checks.same("check: nothing is wrong", defects, [])
    states = {row["key"]: row["state"] for row in document["checks"] if row["key"].startswith("proc_")}
    checks.same("check: files of /proc are compared", set(states.values()), {"ok"})


def check_commands(checks: Checks) -> None:
    """Every command, and ``show`` of each of its regions, ends as it should."""
    pid = str(min(pid for pid, *_ in workload()))
    document = ask(checks, "layout")
    Path(SAVED).write_text(json.dumps(document))
    lines = [(name, words) for name, questions in RUNS.items() for words in questions if name != "show"]
    lines += [
        ("show", row["key"])
        for row in document["regions"]
        if row["kind"] == "region" and row["state"] == "present"
    ]
    for name, words in lines:
        if name == "check" or "--root user" in words:
            continue
        text = ["init_task" if word == "A" else pid if word == "P" else word for word in words.split()]
        out = ["-o", REPORT] if name == "report" else []
        run(checks, ["--json", name, *text] if not out else [name, *text, *out])


def main() -> None:
    """Run the checks and print the report."""
    checks = Checks()
    run(checks, ["layout"], installed=True)
    checks.source = open_kernel(Request()).source
    kernel = kernel_of(checks.source)
    # Data that every command needs is read once, and not by each child, because emulation is slow.
    layout(kernel)
    checks.opened = kernel
    steps: List[Callable[[Checks], None]] = [
        check_layout,
        check_translate,
        check_image,
        check_modules,
        check_vmalloc,
        check_user,
        check_pages,
        check_check,
        check_commands,
    ]
    for step in steps:
        try:
            step(checks)
        except Exception:
            checks.wrong.append(traceback.format_exc()[-2000:])
    found: Dict[str, object] = {
        "kernel": checks.kernel,
        "compared": checks.compared,
        "wrong": checks.wrong,
        "commands": checks.commands,
        "partial": checks.partial,
        "codes": checks.codes,
        "times": checks.runs,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
