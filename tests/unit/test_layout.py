# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layout of made-up kernels: from VMCOREINFO and page tables alone, and from nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvintro.errors import KvintroError
from kvintro.opening import open_kernel
from kvintro.render import render
from kvintro.reports.layout import layout
from kvintro.source import Request
from tests.synthetic import Memory, elf_core, kernel_of, vmcoreinfo

BASES = {4: 0xFFFF9A1000000000, 5: 0xFF2C561A00000000}
VMALLOC = {4: 0xFFFFB80000000000, 5: 0xFF70E37F40000000}
VMEMMAP = {4: 0xFFFFF14540000000, 5: 0xFFF03FA3C0000000}


def made_up(levels: int) -> Memory:
    """A kernel with 128 MB of RAM in the direct map, a page of vmalloc, and an image of 4 MB."""
    memory = Memory(levels)
    for physical in range(0, 128 << 20, 2 << 20):
        memory.map(BASES[levels] + physical, physical, level=2)
    memory.map(VMALLOC[levels], 0x5000)
    for at in range(0, 4 << 20, 2 << 20):
        memory.map(0xFFFFFFFF81000000 + at, 0x1000000 + at, level=2)
    return memory


def rows_of(text: str) -> Dict[str, Any]:
    return {row["key"]: row for row in json.loads(text)["regions"]}


def assert_partition(rows: List[Any]) -> None:
    """Assert that rows with addresses cover 0 to 2^64-1 exactly, in order."""
    following = 0
    for row in rows:
        if row["start"] is None:
            assert row["state"] in ("absent", "unknown")
            assert row["reason"]
            continue
        assert int(row["start"], 16) == following
        assert int(row["end"], 16) - int(row["start"], 16) + 1 == row["size"] > 0
        following = int(row["end"], 16) + 1
    assert following == 1 << 64


@pytest.mark.parametrize("levels", [4, 5])
def test_without_symbols_and_types(levels: int) -> None:
    info = vmcoreinfo(
        levels,
        more={"NUMBER(VMALLOC_START)": f"0x{VMALLOC[levels]:x}", "SYMBOL(vmemmap)": f"{VMEMMAP[levels]:x}"},
    )
    text = render(layout(kernel_of(made_up(levels), info)), "json")
    rows = rows_of(text)
    assert_partition(json.loads(text)["regions"])
    assert rows["direct_map"]["start"] == f"0x{BASES[levels]:016x}"
    assert rows["direct_map"]["provenance"].startswith("page tables")
    assert rows["direct_map"]["leaves"] == {"2M": 64}
    assert rows["direct_map"]["mapped"] == 128 << 20
    assert rows["vmalloc"]["start"] == f"0x{VMALLOC[levels]:016x}"
    assert rows["vmalloc"]["leaves"] == {"4K": 1}
    assert rows["vmemmap"]["start"] == f"0x{VMEMMAP[levels]:016x}"
    assert rows["kernel_image"]["mapped"] == 4 << 20
    # Facts that neither tables nor the note contain are reported as unknown, not guessed.
    assert rows["kasan_shadow"]["state"] == "unknown"
    assert rows["fixmap"]["state"] == "unknown"
    assert json.loads(text)["partial"] is True


def test_bounds_that_overlap_a_constant_are_refused() -> None:
    info = vmcoreinfo(more={"NUMBER(VMALLOC_START)": "0xffffdf0000000000"})
    document = json.loads(render(layout(kernel_of(made_up(4), info)), "json"))
    assert_partition(document["regions"])
    row = next(r for r in document["regions"] if r["key"] == "vmalloc")
    assert row["state"] == "unknown"
    assert "overlap cpu_entry_area" in row["reason"]


addresses = st.integers(0, (1 << 64) - 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    levels=st.sampled_from([4, 5]),
    vmalloc=addresses,
    vmemmap=addresses,
    window=st.integers(-5, 1 << 40),
    slide=addresses,
    size=st.integers(0, 1 << 33),
    entries=st.lists(st.tuples(st.integers(0, 511), addresses), max_size=8),
)
def test_nonsense_still_partitions(
    levels: int, vmalloc: int, vmemmap: int, window: int, slide: int, size: int, entries: Any
) -> None:
    memory = made_up(levels)
    for index, value in entries:
        memory.entry(memory.root + 8 * index, value)
    info = vmcoreinfo(
        levels,
        more={
            "NUMBER(VMALLOC_START)": hex(vmalloc),
            "SYMBOL(vmemmap)": f"{vmemmap:x}",
            "NUMBER(KERNEL_IMAGE_SIZE)": str(window),
            "KERNELOFFSET": f"{slide:x}",
            "SIZE(page)": str(size),
        },
    )
    try:
        report = layout(kernel_of(memory, info))
    except KvintroError:
        return
    assert_partition(json.loads(render(report, "json"))["regions"])
    assert render(report, "text")
    assert render(report, "csv")


def test_pages_left_out_of_an_elf_dump(tmp_path: Path) -> None:
    """makedumpfile excludes them from the file, not from the segment; a table there is not one of zeros."""
    memory = made_up(4)
    entry = memory.read(memory.root + 8 * (VMALLOC[4] >> 39 & 511), 8)
    table = int.from_bytes(entry, "little") & 0xFFFFFFFFFF000
    info = vmcoreinfo(more={"NUMBER(VMALLOC_START)": f"0x{VMALLOC[4]:x}"}).encode()
    path = tmp_path / "vmcore"

    def document(without: int) -> Any:
        segments = [(0, page, bytes(data)) for page, data in sorted(memory.pages.items()) if page != without]
        path.write_bytes(elf_core(segments, [("VMCOREINFO", 0, info)], left_out={without - 4096: 4096}))
        return json.loads(render(layout(open_kernel(Request(core=str(path)))), "json"))

    whole = {row["key"]: row for row in document(0)["regions"]}
    assert whole["vmalloc"]["mapped"] == 4096
    filtered = document(table)
    assert "vmalloc and ioremap: page tables of 512 GB are not in this source" in filtered["notes"]
    assert filtered["partial"]
