# SPDX-License-Identifier: LGPL-2.1-or-later
"""The output of ``explain``, against the kernel's configuration, command line and variables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, Dict, List

import pytest

from kvintro.kernels import Kernel
from kvintro.model import Table
from kvintro.render import render
from kvintro.reports.explain import explain
from kvintro.reports.layout import DAMAGED, layout
from tests.conftest import Core
from tests.cores.showing import needs

ARCHITECTURES = ("amd64", "arm64")
SHIPPED_ONLY = ("arm64",)


@pytest.fixture(scope="module")
def all_definitions(kernel: Kernel) -> List[Dict[str, Any]]:
    """The definitions of all regions; some share the same one."""
    if kernel.source.symbols == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its symbols")
    document = json.loads(render(explain(kernel, everything=True), "json"))
    return [d for row in document["regions"] for d in row["definitions"]]


@pytest.fixture(scope="module")
def definitions(all_definitions: List[Dict[str, Any]]) -> Dict[str, Any]:
    return {d["name"]: d for d in all_definitions}


def test_configuration(core: Core, all_definitions: List[Dict[str, Any]], kernel: Kernel) -> None:
    needs(kernel, "vsyscall_mode")
    built = {f"CONFIG_{name}" for name, value in core.config.items() if value == "y"}
    told = [(d["name"], d["here"]) for d in all_definitions if d["kind"] == "config" and d["here"]]
    assert len(dict(told)) > (8 if core.architecture == "amd64" else 3)
    for name, here in told:
        # 6.9 renamed it; the text says so.
        former = name.replace("MITIGATION_", "")
        assert here == ("on" if {name, former} & built else "off"), name


def test_partial_is_what_is_asked_for(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown facts about one region do not make the text of another one partial."""
    whole = layout(kernel)
    rows = [
        replace(row, state="unknown", reason="lost") if row.key == "vmalloc" else replace(row, reason=None)
        for row in whole.tables[0].rows
    ]
    table = Table("regions", whole.tables[0].columns, rows)
    partial = replace(whole, tables=(table,), partial=True, notes=())
    monkeypatch.setattr("kvintro.reports.explain.layout", lambda _: partial)
    for names, expected in ((["modules"], False), (["vmalloc"], True), (["modules", "vmalloc"], True)):
        assert explain(kernel, names).partial is expected
    assert explain(kernel).partial and explain(kernel, ["hole"]).partial
    damaged = replace(partial, notes=(DAMAGED,))
    monkeypatch.setattr("kvintro.reports.explain.layout", lambda _: damaged)
    assert explain(kernel, ["modules"]).partial


def test_boot_options(core: Core, definitions: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "saved_command_line")
    given = core.truth("cmdline").split()
    for name, definition in definitions.items():
        if definition["kind"] == "boot":
            same = [o for o in given if o.split("=")[0].replace("-", "_") == name.split("=")[0]]
            assert definition["here"] == (" ".join(same) or "not given"), name


def test_variables(core: Core, definitions: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "vmalloc_base")
    values = {
        line.split()[0]: int(line.split()[3], 0)
        for line in core.truth("values").splitlines()
        if len(line.split()) == 4 and not line.startswith("#") and "bytes:" not in line
    }
    compared = 0
    for name, definition in definitions.items():
        if (
            definition["kind"] == "variable"
            and name in values
            and re.fullmatch("-?[0-9a-f]+", definition["here"])
        ):
            number = definition["here"]
            bases = {int(number, 16), *([int(number)] if number.isdigit() else [])}
            signed = {v - (1 << 64) if v >> 63 else v for v in bases} | bases
            assert values[name] in signed | {v & (1 << 64) - 1 for v in signed}, name
            compared += 1
    assert compared >= 4


def test_examples_follow_the_rule(kernel: Kernel) -> None:
    for key in ("direct_map", "kernel_image"):
        (row,) = explain(kernel, [key]).tables[0].rows
        example = [text for text in row.here if text.startswith("For example")]
        if kernel.source.symbols != "none":
            assert example[0].endswith("gives the same address.")


def test_text_says_it_all(kernel: Kernel) -> None:
    report = explain(kernel, everything=True)
    text = " ".join(render(report, "text").split())
    for row in report.tables[0].rows:
        for part in (*row.purpose, *row.here, *row.changed):
            assert part in text
