# SPDX-License-Identifier: LGPL-2.1-or-later
"""The notebook runs on the sample dump, and its results are what the dumped kernel said about itself."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any, Dict, List

import pytest

from tests.conftest import ROOT, VMCORES, Core
from tools.notebook import html, run

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
PFN = (1 << 55) - 1  # of an entry of pagemap


@pytest.fixture(scope="module")
def sample() -> Core:
    """The core that the notebook opens."""
    return Core(VMCORES / "debian-6.12")


@pytest.fixture(scope="module")
def names() -> Dict[str, Any]:
    """The global names of the notebook, and in ``_values`` what each cell of code shows."""
    found: Dict[str, Any] = {}
    found["_values"] = [value for kind, _, value in run(NOTEBOOK, found) if kind == "code"]
    return found


def test_it_is_kept_without_results() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_every_cell_shows_something(names: Dict[str, Any]) -> None:
    shown = [html(value) for value in names["_values"]]
    assert None not in names["_values"]
    assert "<svg" in shown[1], "the layout is drawn"


def test_each_step_has_a_sentence() -> None:
    kinds = [cell["cell_type"] for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    assert all(before == "markdown" for before, kind in zip(kinds, kinds[1:]) if kind == "code")


def test_the_direct_map_is_where_the_kernel_has_it(sample: Core, names: Dict[str, Any]) -> None:
    values = {line.split()[0]: line.split()[-1] for line in sample.truth("values").splitlines()[1:]}
    assert names["k"].regions.direct_map.start == int(values["page_offset_base"], 16)
    assert names["_values"][5] is True, "both addresses have the same bytes"


def test_symbols_are_those_of_proc_kallsyms(sample: Core, names: Dict[str, Any]) -> None:
    text = gzip.decompress((sample.truth_directory / "kallsyms.gz").read_bytes()).decode()
    symbols = {(line.split()[2], int(line.split()[0], 16)) for line in text.splitlines()}
    assert ("init_task", names["task"].virtual) in symbols


def test_registers_lead_where_they_did(sample: Core, names: Dict[str, Any]) -> None:
    """RIP and RBP as QEMU's monitor showed them, and the kernel's code in /proc/iomem."""
    code, task = names["_values"][4]
    registers = dict(re.findall(r"\b(\w+) *=([0-9a-f]{16})\b", sample.truth("registers").split("CPU#1")[0]))
    assert (code.address, task.address) == (int(registers["RIP"], 16), int(registers["RBP"], 16))
    start, end = re.findall(r"(\w+)-(\w+) : Kernel code", sample.truth("iomem"))[0]
    assert int(start, 16) <= code.physical <= int(end, 16)
    assert task.address == names["task"].virtual
    assert [thing.kind for thing in task.identities][:1] == ["task"]


def test_the_areas_are_those_of_proc_maps(sample: Core, names: Dict[str, Any]) -> None:
    lines: List[str] = sample.truth("proc/165/maps").splitlines()
    assert [f"{row.start:08x}-{row.end + 1:08x} {row.permissions}" for row in names["process"].vmas] == [
        " ".join(line.split()[:2]) for line in lines
    ]


def test_the_page_is_that_of_proc_pagemap(sample: Core, names: Dict[str, Any]) -> None:
    entries = {
        (int(pid), int(virtual, 16)): int(entry, 16)
        for pid, virtual, entry, *_ in map(str.split, sample.truth("pagemap").splitlines())
    }
    assert names["page"].pfn == entries[165, names["process"].vmas[1].start] & PFN
