# SPDX-License-Identifier: LGPL-2.1-or-later
"""``check`` finds no defect in a healthy kernel, and finds each rule broken that a test breaks."""

from __future__ import annotations

import dataclasses
import re
from typing import Dict, List

import pytest

from kvintro.arch import Architecture, architectures
from kvintro.arch.riscv64.form import PFN_SHIFT
from kvintro.arch.x86_64 import USER
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.opening import kernel_of
from kvintro.paging import MAPPED
from kvintro.queries.audit import Check, checks_of, frames, running
from kvintro.readers.damage import Damage
from kvintro.readers.processes import each_mm, mm_of, root_of
from kvintro.regions.vmalloc import AreaRow, Areas
from kvintro.reports.check import check
from kvintro.source.elf import Segment
from tests.conftest import Core
from tests.cores.breaks_aarch64 import ARM64
from tests.cores.breaks_riscv64 import RISCV64
from tests.cores.breaks_x86_64 import X86
from tests.cores.patched import Breaks, Patched, frame_of, rows, symbol

ARCHITECTURES = ("amd64", "arm64", "riscv64")
#: Of the built cores of an architecture; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("arm64",)

#: By the name of the architecture.
BREAKS: Dict[str, Breaks] = {"x86-64": X86, "aarch64": ARM64, "riscv64": RISCV64}
RULES = sorted({rule for breaks in BREAKS.values() for rule in breaks.breaks})
FILES = sorted({rule for breaks in BREAKS.values() for rule in breaks.files})


def rule_of(kernel: Kernel, key: str) -> Check:
    """The rule with this key. If this architecture does not have it, the test is skipped."""
    found = next((rule for rule in checks_of(kernel.arch) if rule.key == key), None)
    return found or pytest.skip(f"{kernel.arch.name} has no rule {key}")


def of(kernel: Kernel) -> Breaks:
    return BREAKS[kernel.arch.name]


def states(kernel: Kernel, *keys: str) -> Dict[str, str]:
    return {key: rule_of(kernel, key).verdict(kernel).state for key in keys}


def test_a_healthy_kernel_has_no_defect(core: Core, kernel: Kernel) -> None:
    """On every core of the matrix, only deviations that the boot options asked for are reported."""
    report = check(kernel)
    findings, rules = report.tables[0].rows, report.tables[1].rows
    assert not [row for row in findings if row.severity == "defect"]
    assert not report.negative
    # The kernel's code is excluded from this dump, and no rule needs it.
    unknown = {row.key for row in rules if row.state == "unknown"}
    excused = set(of(kernel).nameless) if kernel.code_only else set()
    if core.architecture == "arm64" and core.meta["efi"]:
        excused.add("kaslr")  # the kernel does not record whether firmware gave the stub a random number
    assert unknown <= excused
    assert report.partial == any(row.unknown for row in rules)
    assert {row.key for row in rules if row.unknown} <= excused
    warned = {row.rule for row in findings if row.severity == "warning"}
    expected = set()
    if not core.kaslr:
        expected.add("kaslr")
    if not core.meta.get("pti", True):
        expected.add("pti")
    assert warned == expected


def test_an_image_that_stayed_where_it_was_loaded_is_noticed(core: Core, kernel: Kernel) -> None:
    """KASLR is on, but found no other place in physical memory; /proc/iomem shows the code at 16 MB."""
    if core.architecture != "amd64":
        pytest.skip("only x86-64 draws a place in physical memory")
    code = re.search(r"^ *(\w+)-\w+ : Kernel code", core.truth("iomem"), re.M)
    assert code
    stayed = core.kaslr and int(code[1], 16) == 16 << 20
    findings = check(kernel).tables[0].rows
    told = [row.what for row in findings if row.rule == "kaslr" and "image, physical" in row.what]
    assert bool(told) is bool(stayed or not core.kaslr)


def test_a_kernel_that_checked_itself_passes(core: Core, kernel: Kernel) -> None:
    """CONFIG_DEBUG_WX reports this at boot, for the kernel's tables and for those of user mode."""
    if "Checked W+X mappings: passed" not in core.truth("dmesg"):
        pytest.skip("built without CONFIG_DEBUG_WX")
    assert states(kernel, "wx") == {"wx": "ok"}


@pytest.mark.parametrize("arch", architectures(), ids=lambda arch: arch.name)
def test_every_rule_is_broken_somewhere(arch: Architecture) -> None:
    checks, how = checks_of(arch), BREAKS[arch.name]
    of_files = {rule.key for rule in checks if rule.live}
    assert {rule.key for rule in checks} == {*how.breaks, *how.elsewhere, *of_files}
    assert of_files == {*how.files, "proc_kcore"}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_found(kernel: Kernel, rule: str) -> None:
    judged = rule_of(kernel, rule)
    patched = Patched(kernel)
    symbol(patched, "_stext")
    of(kernel).breaks[rule](patched)
    verdict = judged.verdict(patched.afresh())
    if kernel.code_only and rule in of(kernel).nameless:
        assert verdict.state == "unknown" or all(f.severity == "defect" for f in verdict.findings)
        return
    severity, state = "defect", "failed"
    if rule in of(kernel).protections:
        severity = state = "warning"
    assert verdict.state == state, verdict
    assert all(finding.severity == severity for finding in verdict.findings)


def test_a_defect_is_a_negative_answer(kernel: Kernel) -> None:
    patched = Patched(kernel)
    symbol(patched, "_stext")
    of(kernel).breaks["wx"](patched)
    report = check(patched.afresh())
    assert report.negative
    # Findings take precedence over parts that could not be compared.
    assert not report.partial
    findings = [row for row in report.tables[0].rows if row.rule == "wx"]
    address = kernel.symbol("_stext") + 0x10000
    assert any((row.start or 0) <= address <= (row.end or 0) for row in findings)
    assert next(row.severity for row in report.tables[0].rows) == "defect"
    state = {row.key: row.state for row in report.tables[1].rows}
    rodata = "unknown" if kernel.code_only else "ok"
    assert (state["wx"], state["text_ro"], state["rodata_ro"]) == ("failed", "failed", rodata)


def test_a_user_bit_counts_only_if_all_levels_have_it(kernel: Kernel) -> None:
    if kernel.arch.name != "x86-64":
        pytest.skip("tables of other architectures give no access")
    last = kernel.walk(symbol(kernel, "init_task")).steps[-1]
    assert last.value is not None
    one_level = Patched(kernel)
    one_level.patches[last.entry_address] = last.value | USER
    assert states(one_level, "user_bit") == {"user_bit": "ok"}


@pytest.mark.parametrize("hidden", ["checks.each_mm", "drgn.helpers.linux.pid.for_each_task"])
def test_a_process_that_is_hidden_is_compared(
    kernel: Kernel, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the list of processes, or from the tree of their numbers."""
    rule = rule_of(kernel, "process_roots")
    patched = Patched(kernel)
    of(kernel).breaks["process_roots"](patched)
    place = hidden.replace("checks", "kvintro.arch.x86_64.checks")
    monkeypatch.setattr(place, lambda *_: iter(()))
    assert rule.verdict(patched.afresh()).state == "failed"


def test_a_user_table_must_be_marked_as_one(kernel: Kernel) -> None:
    patched = Patched(kernel)
    process = next(iter(each_mm(kernel, Damage())))
    root = root_of(kernel, mm_of(kernel, process))
    start = kernel.tree(root).ranges(0, kernel.form.user.end).select(MAPPED)[0][0]
    step = kernel.walk(start, root).steps[-2]
    assert step.value is not None
    if step.level != 2:
        pytest.skip("the first page of the first process is large")
    shift = PFN_SHIFT if kernel.arch.name == "riscv64" else kernel.page_shift
    flags = step.value & ~((1 << 48) - (1 << shift))
    patched.patches[step.entry_address] = flags | frame_of(kernel, "kernel") << shift
    assert states(patched, "table_pages") == {"table_pages": "failed"}


def test_areas_against_each_other(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    symbol(kernel, "_stext")
    if states(kernel, "vmap_strays")["vmap_strays"] == "unknown":
        pytest.skip("this kernel names its code only: which areas were freed lately is not known")
    found = rows(kernel)
    mapped = next(row for row in found if row.mapped and row.kind == "vmalloc")

    def with_rows(changed: List[AreaRow]) -> Dict[str, str]:
        monkeypatch.setattr(Areas, "rows", lambda self: changed)
        return states(kernel.fresh(), "vmap_areas", "vmap_strays")

    longer = dataclasses.replace(mapped, end=type(mapped.end)(mapped.end + (1 << 40)))
    assert with_rows([*found, longer])["vmap_areas"] == "failed"
    moved = dataclasses.replace(mapped, start=type(mapped.start)(kernel.place("direct_map").range.start))
    assert with_rows([*found, moved])["vmap_areas"] == "failed"
    without = [row for row in found if row is not mapped]
    assert with_rows(without) == {"vmap_areas": "ok", "vmap_strays": "failed"}


# The files of the running kernel, here from the same boot.


@pytest.mark.parametrize("rule", FILES)
def test_files_of_proc(core: Core, kernel: Kernel, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = rule_of(kernel, rule)
    lines = core.truth(of(kernel).files[rule]).splitlines()
    symbol(kernel, "_stext")
    monkeypatch.setattr(running, "_read", lambda path: lines)
    verdict = judged.verdict(kernel)
    if kernel.code_only and rule in {*of(kernel).nameless, "proc_meminfo"}:
        assert verdict.state == "unknown"
        return
    assert verdict.state == "ok", verdict
    if rule == "proc_meminfo":
        changed = [re.sub(r"^(DirectMap4k: +)", r"\g<1>9", line) for line in lines]
    else:
        changed = lines[:3] + lines[4:]
    assert changed != lines
    monkeypatch.setattr(running, "_read", lambda path: changed)
    assert judged.verdict(kernel).state == "failed"


def test_hidden_addresses_of_vmallocinfo(core: Core, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["0x000000001234abcd-0x00000000abcd1234" + line[37:]
             for line in core.truth("vmallocinfo").splitlines()]  # fmt: skip
    symbol(kernel, "_stext")
    judged = rule_of(kernel, "proc_vmallocinfo")
    monkeypatch.setattr(running, "_read", lambda path: lines)
    verdict = judged.verdict(kernel)
    if kernel.code_only and "proc_vmallocinfo" in of(kernel).nameless:
        assert verdict.state == "unknown"
        return
    assert verdict.state == "ok", verdict
    assert "hides" in verdict.detail
    monkeypatch.setattr(running, "_read", lambda path: lines[1:])
    assert judged.verdict(kernel).state == "failed"


def test_segments_of_kcore(core: Core, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = []
    for line in core.truth("kcore-phdrs").splitlines():
        words = line.split()
        if words and words[0] == "LOAD":
            segments.append(Segment(*(int(word, 16) for word in words[1:6])))
    symbol(kernel, "_stext")
    if not segments:
        pytest.skip("the file has another form")
    source = dataclasses.replace(kernel.source, segments=tuple(segments))
    known = "unknown" if "unknown" in states(kernel, "vmcoreinfo").values() else "ok"
    assert states(kernel_of(source), "proc_kcore", "vmcoreinfo") == {"proc_kcore": "ok", "vmcoreinfo": known}
    wrong = dataclasses.replace(
        kernel.source, segments=tuple(s._replace(vaddr=s.vaddr + 0x1000 & ALL) for s in segments)
    )
    found = states(kernel_of(wrong), "proc_kcore", "vmcoreinfo")
    assert found["proc_kcore"] == "failed"
    # Where the direct map's base is known from the segments alone, nothing contradicts them.
    assert found["vmcoreinfo"] == "failed" or (known, found["vmcoreinfo"]) == ("unknown", "unknown")


def test_pages_come_in_pieces(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All addresses are looked up, however many there are."""
    symbol(kernel, "_stext")
    patched = Patched(kernel)
    of(kernel).breaks["mapped_pages"](patched)
    whole = frames.free_pages(patched.afresh())
    monkeypatch.setattr(frames, "_AT_ONCE", 101)
    assert frames.free_pages(patched.afresh()) == whole
