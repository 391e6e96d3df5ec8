# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every core, converted by ``kvintro convert`` and read by drgn, volatility3 and makedumpfile.

test_pages_truth compares the pages that a level leaves out with the kernel's own flags, and
tests/vm/test_formats.py with makedumpfile.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, List

import drgn
import pytest

from kvintro.cli import main
from kvintro.convert import convert
from kvintro.errors import NotInDump, UsageError
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.prompt import kernel as kernel_of
from kvintro.queries.pages.frames import Frames, memory_of
from kvintro.queries.pages.levels import FREE, USER, left_out, unwatched
from kvintro.source import Request
from kvintro.source.content import FileContent
from kvintro.source.files import open_file
from kvintro.source.kdump import descriptors, examine_kdump, held
from tests.conftest import Core
from tests.cores.conftest import Range, regions
from tests.cores.test_schema import check
from tests.volatility import Volatility

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")
ARCHITECTURES = ("amd64", "arm64", "riscv64")

STEP = 1 << 20
# makedumpfile may be built without zstd; test_a_filtered_file tests zstd.
FORMS = (("elf", "none"), ("kdump", "zlib"))


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def written(
    request: pytest.FixtureRequest, kernel: Kernel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The converted core."""
    path = tmp_path_factory.mktemp("converted") / "-".join(request.param)
    form, compress = request.param
    convert(kernel, str(path), form=form, compress=compress)
    yield path
    path.unlink()


def placed(rows: Any) -> Any:
    """Rows of the layout without their provenance: an ELF file has segments, and a kdump does not."""
    return [{key: value for key, value in row.items() if key != "provenance"} for row in rows]


def test_drgn_reads_all_of_it(core: Core, written: Path, kernel: Kernel, memory: List[Range]) -> None:
    """drgn reads every page, also by virtual address, except where libkdumpfile does not know the tables."""
    prog = drgn.Program()
    prog.set_core_dump(written)
    assert prog["VMCOREINFO"].string_() == kernel.prog["VMCOREINFO"].string_()
    for first, data in memory:
        for at in range(0, len(data), STEP):
            part = data[at : at + STEP]
            assert prog.read(first + at, len(part), True) == part, f"{first + at:x}"
    if core.has_fewer_bits and core.page_size == 1 << 16 and "kdump" in written.name:
        with pytest.raises(drgn.FaultError):
            prog.read(kernel.text.value, STEP)
        return
    assert prog.read(kernel.text.value, STEP) == kernel.read(kernel.text.value, STEP)


def test_the_kernel_is_the_same(written: Path, kernel: Kernel, expected: Any) -> None:
    other = open_kernel(Request(core=str(written)))
    assert placed(regions(other)) == placed(expected)
    assert (other.source.complete, other.source.left_out) == (True, kernel.source.left_out)
    assert other.source.writer.startswith("kvintro ")
    assert other.source.warnings == []
    before, after = memory_of(kernel), memory_of(other)
    if other.source.format == "kdump":
        # It does not contain firmware, but all memory that the kernel can use.
        assert all(first >= 0xC0000 for first, _ in before.there - after.there)
    else:
        assert list(after.there) == list(before.there)
    assert list(after.there - before.there) == []
    assert list(after.left_out) == list(before.left_out)


@pytest.mark.parametrize("level", [0, 31])
def test_volatility_reads_the_elf_file(kernel: Kernel, tmp_path: Path, level: int) -> None:
    """Also what is beyond the image or beyond pages that were left out."""
    path = tmp_path / "out"
    convert(kernel, str(path), level=level)
    layer = Volatility("elf.Elf64Layer", path)
    page = kernel.form.page_size
    frames = memory_of(open_kernel(Request(core=str(path)))).there
    assert frames.count > 1000
    for first, end in frames:
        for at in range(first * page, end * page, STEP):
            size = min(STEP, end * page - at)
            assert layer.read(at, size) == kernel.read_physical(at, size), f"{at:x}"
    path.unlink()


def test_makedumpfile_filters_it(written: Path, core: Core, kernel: Kernel, tmp_path: Path) -> None:
    """makedumpfile reads the file, and the pages that it considers free are those that convert leaves out.

    Each page that it writes is the core's.
    """
    if shutil.which("makedumpfile") is None:
        pytest.skip("makedumpfile is missing (apt install makedumpfile)")
    if core.architecture != "amd64":
        pytest.skip("makedumpfile on x86-64 reads dumps of x86-64 only")
    target = tmp_path / "filtered"
    command = ["makedumpfile", "-c", "-d", str(FREE), str(written), str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ours = memory_of(kernel).there
    for frames in left_out(kernel, FREE, unwatched).values():
        ours = ours - frames
    other = open_kernel(Request(core=str(target)))
    theirs = memory_of(other).there
    # It copied the note of kvintro's file.
    assert other.source.writer.endswith(", or a program that read its file")
    page = kernel.form.page_size
    for first, end in theirs:
        for at in range(first * page, end * page, STEP):
            size = min(STEP, end * page - at)
            assert other.read_physical(at, size) == kernel.read_physical(at, size), f"{at:x}"
    target.unlink()
    # Firmware below 4 GB has no struct pages, and makedumpfile excludes it.
    assert [run for run in ours - theirs if run[0] < 0xC0000] == []
    assert list(theirs - ours) == []


@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_a_filtered_file(
    core: Core, kernel: Kernel, expected: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """All commands work on a filtered file, and report excluded pages as missing, not as zeros."""
    path = tmp_path / "out"
    line = ["--json", "convert", str(core.path), "-o", str(path), "--to", form, "-d", "31"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    check(report)
    said = {row["key"]: row["pages"] for row in report["pages"]}
    other = open_kernel(Request(core=str(path)))
    assert placed(regions(other)) == placed(expected)
    there = memory_of(other)
    assert there.there.count == said["written"] and said["free"] > 1000 and said["user"] > 1000
    gone = memory_of(kernel).there - there.there
    assert gone.count == sum(
        said.get(key, 0) for key in ("free", "cache", "cache_private", "user", "firmware")
    )
    page = kernel.form.page_size
    for first, _ in list(gone)[:50]:
        with pytest.raises(NotInDump):
            other.read_physical(first * page, page)
    # Converted again, the filtered file has the same pages, and the same pages are left out.
    again = tmp_path / "again"
    convert(other, str(again), form="elf" if form == "kdump" else "kdump")
    third = memory_of(open_kernel(Request(core=str(again))))
    for one, two in ((third.there, there.there), (third.left_out, there.left_out)):
        # A kdump does not contain firmware.
        assert all(first >= 0xC0000 for first, _ in (one - two) | (two - one))
    for file in (path, again):
        file.unlink()


@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_what_cannot_be_read_is_counted(
    core: Core, kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    page = kernel.form.page_size
    users = [f for first, end in left_out(kernel, USER, unwatched)["user"] for f in range(first, end)]
    # Pages of zeros share one page of the file.
    frames = [frame for frame in users if any(kernel.read_physical(frame * page, page))][:150]
    damaged, path = tmp_path / "damaged", tmp_path / "out"
    convert(kernel, str(damaged), form="kdump", compress="zlib")
    with open_file(str(damaged)) as file, damaged.open("r+b") as target:
        content = FileContent(file)
        headers = examine_kdump(content)
        assert headers.layout is not None
        bits = Frames.of((a // page, b // page) for a, b, there in held(content, headers) if there)
        for frame in frames:
            before = sum(min(b, frame) - a for a, b in bits if a < frame)
            target.seek(int(descriptors(content, headers.layout.table, before, 1)["offset"][0]))
            target.write(b"\xff\xff")  # the place of zlib's header
    assert main(["--json", "-c", str(damaged), "convert", "-o", str(path), "--to", form]) == 4
    report = json.loads(capsys.readouterr().out)
    said = {row["key"]: row["pages"] for row in report["pages"]}
    assert said["unreadable"] == len(frames) > 100
    assert any("could not be read" in note for note in report["notes"])
    other = open_kernel(Request(core=str(path)))
    found = memory_of(other)
    assert found.there.count == said["written"]
    assert found.left_out.count == said["unreadable"] + said.get("left_out", 0)
    for first, end in found.there:
        for at in range(first * page, end * page, STEP):
            size = min(STEP, end * page - at)
            assert other.read_physical(at, size) == kernel.read_physical(at, size)


def test_parts_of_a_split_dump(core: Core, kernel: Kernel, tmp_path: Path) -> None:
    """Parts that makedumpfile made of a converted file, in one file again."""
    if shutil.which("makedumpfile") is None:
        pytest.skip("makedumpfile is missing (apt install makedumpfile)")
    if core.architecture != "amd64":
        pytest.skip("makedumpfile on x86-64 reads dumps of x86-64 only")
    whole, path = tmp_path / "whole", tmp_path / "out"
    parts = [str(tmp_path / f"part{number}") for number in range(3)]
    convert(kernel, str(whole))
    command = ["makedumpfile", "--split", "--splitblock-size", "16", "-c", "-d", "0", str(whole), *parts]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    split = open_kernel(Request(core=parts))
    convert(split, str(path))
    other, page = open_kernel(Request(core=str(path))), kernel.form.page_size
    assert list(memory_of(other).there) == list(memory_of(split).there)
    for first, end in memory_of(other).there:
        for at in range(first * page, end * page, STEP):
            size = min(STEP, end * page - at)
            assert other.read_physical(at, size) == kernel.read_physical(at, size), f"{at:x}"
    for name in (whole, path, *map(Path, parts)):
        name.unlink()


def test_the_source_is_never_the_target(core: Core, tmp_path: Path) -> None:
    path = tmp_path / "core"
    shutil.copy(core.directory / "core.kdump", path)
    before = path.read_bytes()
    k = kernel_of(path)
    with pytest.raises(UsageError, match="which is being read"):
        k.convert(path, force=True)
    assert main(["convert", str(path), "-o", str(path), "--force"]) == 2
    assert path.read_bytes() == before


def test_from_python(core: Core, tmp_path: Path) -> None:
    k = kernel_of(core.path)
    answer = k.convert(tmp_path / "out", to="kdump", compress="zlib", level=16)
    counts = {row.key: row.pages for row in answer}
    assert counts["written"] > counts["zeros"] > 0 and counts["free"] > 0
    with pytest.raises(UsageError, match="no level 32"):
        k.convert(tmp_path / "other", level=32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
