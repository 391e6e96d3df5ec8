# SPDX-License-Identifier: LGPL-2.1-or-later
"""Incomplete dumps: kvintro shows the existing data, reports the missing parts, and makes nothing up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

from kvintro.cli import main
from kvintro.errors import NotInDump
from kvintro.kernels import Kernel
from tests.conftest import Core
from tests.cores.showing import needs
from tests.memory_files import dumped_ranges
from tests.synthetic import elf_core

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

MB = 1 << 20


def memory(core: Core, kernel: Kernel) -> Iterator[Tuple[int, bytes]]:
    """All of the core's RAM in pieces of at most 1 MB."""
    starts = [
        (at, min(MB, end - at)) for start, end in dumped_ranges(core.path) for at in range(start, end, MB)
    ]
    for address, size in starts:
        try:
            yield address, kernel.read_physical(address, size)
        except NotInDump:
            # Firmware's hole below 1 MB.
            for page in range(address, address + size, 4096):
                try:
                    yield page, kernel.read_physical(page, 4096)
                except NotInDump:
                    continue


def note(kernel: Kernel) -> List[Tuple[str, int, bytes]]:
    return [("VMCOREINFO", 0, kernel.prog["VMCOREINFO"].string_())]


@pytest.fixture(scope="module")
def whole(core: Core, kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same memory as an ELF file."""
    if kernel.source.symbols == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its symbols")
    path = tmp_path_factory.mktemp("elf") / "vmcore"
    segments = [(0, address, data) for address, data in memory(core, kernel)]
    path.write_bytes(elf_core(segments, note(kernel)))
    yield path
    path.unlink()


def layout_of(path: Path, capsys: pytest.CaptureFixture[str]) -> Tuple[int, Any, str]:
    code = main(["-c", str(path), "--json", "layout"])
    out, err = capsys.readouterr()
    assert "internal error" not in err
    return code, json.loads(out) if out else None, err


def test_the_whole_of_it_as_elf(
    core: Core, kernel: Kernel, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(kernel, "vsyscall_mode")
    code, document, _ = layout_of(whole, capsys)
    assert (code, document["partial"]) == (0, False)
    by_key = {row["key"]: row for row in document["regions"]}
    assert by_key["direct_map"]["mapped"] > sum(end - start for start, end in dumped_ranges(core.path)) * 0.9


@pytest.mark.parametrize("percent", [1, 20, 50, 80, 99])
def test_cut_off(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], percent: int) -> None:
    full = {row["key"]: row for row in layout_of(whole, capsys)[1]["regions"]}
    path = tmp_path / "vmcore"
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])
    code, document, err = layout_of(path, capsys)
    if document is None:
        # The root table or the headers were in the missing part.
        assert code == 3
        assert len(err.splitlines()) == 2
        return
    assert any("truncated" in text for text in document["notes"])
    assert code in (0, 4)
    assert (code == 4) == document["partial"]
    for row in document["regions"]:
        # Less may be known than from the whole dump, but nothing may be larger or elsewhere.
        if row["key"] == "hole" or row["state"] != "present":
            continue
        assert row["start"] == full[row["key"]]["start"]
        if row["mapped"] is not None:
            assert row["mapped"] <= full[row["key"]]["mapped"]


def test_a_table_that_was_left_out(
    core: Core, kernel: Kernel, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one page table of vmalloc, the bytes below it are neither mapped nor unmapped."""
    full = {row["key"]: row for row in layout_of(whole, capsys)[1]["regions"]}["vmalloc"]
    step = kernel.walk(int(full["start"], 16)).steps[-1]
    assert step.level == 1
    table = step.entry_address & ~4095
    segments = []
    for address, data in memory(core, kernel):
        if address <= table < address + len(data):
            low, high = table - address, table - address + 4096
            segments += [(0, address, data[:low]), (0, table + 4096, data[high:])]
        else:
            segments.append((0, address, data))
    path = tmp_path / "vmcore"
    path.write_bytes(elf_core(segments, note(kernel)))
    code, document, _ = layout_of(path, capsys)
    assert code == 4
    assert "vmalloc and ioremap: page tables of 2 MB are not in this source" in document["notes"]
    row = next(row for row in document["regions"] if row["key"] == "vmalloc")
    assert "page tables of 2 MB" in row["reason"]
    # If that was the only table, the mapped size is unknown, and not 0.
    assert row["mapped"] is None or 0 < full["mapped"] - row["mapped"] <= 2 * MB
    assert row["mapped"] != 0
