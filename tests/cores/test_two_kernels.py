# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory with two kernels in it, as in a dump that was taken in the kdump kernel: the one that crashed, and
the one that was started to take the dump.

They are two of the sample cores. The test moves the second one up in physical memory, with its page tables
and its ``phys_base``; its virtual addresses stay the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from kvintro.arch.x86_64.facts import x86_facts
from kvintro.cli import main
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.conftest import VMCORES, Core
from tests.memory_files import lime, raw
from tests.remade import Remade
from tests.synthetic import elf_core

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

FIRST, SECOND = VMCORES / "debian-6.12", VMCORES / "oracle-6.12"
MOVED = 1 << 30

Memory = List[Tuple[int, bytes]]

pytestmark = pytest.mark.skipif(
    not (FIRST.exists() and SECOND.exists()), reason="the sample cores are not in vmcores/"
)


class Both:
    """The memory of both kernels.

    :ivar notes: the text of each one's VMCOREINFO.
    :ivar at: the physical address of that text, as the kernel itself reported it.
    """

    def __init__(self) -> None:
        self.kernels: List[Kernel] = []
        self.memory: Memory = []
        self.notes: List[str] = []
        self.at: List[int] = []
        for directory, up in ((FIRST, 0), (SECOND, MOVED)):
            core = Core(directory)
            kernel = open_kernel(Request(core=str(core.path)))
            made = Remade(core, kernel)
            if up:
                made.change_entries([kernel.root.value], lambda entry: entry + MOVED)
                made.say("NUMBER(phys_base)", x86_facts(kernel).phys_base.value + MOVED)
            self.kernels.append(kernel)
            self.memory += [(address + up, data) for address, data in made.segments() if address < 3 << 30]
            self.notes.append(made.note)
            self.at.append(int(core.truth("vmcoreinfo").split()[0], 16) + up)


@pytest.fixture(scope="module")
def both() -> Both:
    return Both()


def with_note(number: int) -> Callable[[Path, Both], None]:
    def write(path: Path, both: Both) -> None:
        note = ("VMCOREINFO", 0, both.notes[number].encode())
        path.write_bytes(elf_core([(0, at, data) for at, data in both.memory], [note]))

    return write


FORMS: Dict[str, Tuple[Callable[[Path, Both], object], int]] = {
    "raw": (lambda path, both: raw(path, both.memory), 0),
    "LiME": (lambda path, both: path.write_bytes(lime(both.memory)), 0),
    "ELF, the first one's note": (with_note(0), 0),
    "ELF, the second one's note": (with_note(1), 1),
}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    assert code in (0, 4)
    return json.loads(out)


def layout_of(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> Any:
    return said(capsys, "-c", kernel.source.label, "layout")


#: Rows whose places depend on the end of physical memory, or that contain physical addresses.
VIRTUAL = ("kernel_image", "modules", "vmalloc", "fixmap", "cpu_entry_area")


@pytest.mark.parametrize("form", FORMS)
def test_two_kernels(both: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """Both are listed, one is shown, and either can be selected."""
    path = tmp_path / "dump"
    write, shown = FORMS[form]
    write(path, both)
    info = said(capsys, "-c", str(path), "info")
    assert [int(row["vmcoreinfo_at"], 16) for row in info["kernels"]] == both.at
    for row, kernel in zip(info["kernels"], both.kernels):
        assert row["release"] == kernel.identity.release
        assert row["moved_by"] == kernel.image_slide.value
        assert row["paging_levels"] == kernel.levels.value
    assert [row["shown"] for row in info["kernels"]] == [number == shown for number in range(2)]
    assert info["kernel"]["release"] == both.kernels[shown].identity.release
    assert any("--vmcoreinfo-at" in note for note in info["notes"])
    for number, kernel in enumerate(both.kernels):
        for where in (f"{both.at[number]:x}", f"{both.at[number]:#x}"):
            found = said(capsys, "-c", str(path), "--vmcoreinfo-at", where, "layout")
        expected = layout_of(kernel, capsys)
        assert found["kernel"]["release"] == kernel.identity.release
        places = [
            [(r["key"], r["start"], r["end"]) for r in report["regions"] if r["key"] in VIRTUAL]
            for report in (found, expected)
        ]
        assert places[0] == places[1]
        assert len(places[0]) >= len(VIRTUAL) - 1
    path.unlink()


def test_one_that_is_not_there(both: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump"
    path.write_bytes(lime(both.memory))
    for where, code, what in (
        (f"{both.at[0] + 0x1000:x}", 3, "has no VMCOREINFO at physical"),
        ("fffffffff000", 3, "has no VMCOREINFO at physical"),
        ("12345g", 2, "invalid physical address: 12345g"),
        ("-1", 2, ""),
        ("10000000000000", 2, "invalid physical address"),
    ):
        assert main(["-c", str(path), "--vmcoreinfo-at", where, "info"]) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and what in lines[0], lines
    note = tmp_path / "note"
    note.write_text(both.notes[0])
    arguments = ["-c", str(path), "--vmcoreinfo", str(note), "--vmcoreinfo-at", f"{both.at[0]:x}", "info"]
    assert main(arguments) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["--vmcoreinfo-at", f"{both.at[0]:x}", "info"]) == 2
    path.unlink()


def test_one_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    """A single kernel is also listed, and no others are mentioned."""
    for directory in (FIRST, SECOND):
        core = Core(directory)
        info = said(capsys, "-c", str(core.path), "info")
        (row,) = info["kernels"]
        assert row["shown"]
        assert int(row["vmcoreinfo_at"], 16) == int(core.truth("vmcoreinfo").split()[0], 16)
        assert not info["notes"]
