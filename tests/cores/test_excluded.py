# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a filter left out, against makedumpfile's own counts, the kernel's flags of pages, and the bitmaps."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import pytest

from kvintro.cli import main
from kvintro.convert import convert
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.opening import open_kernel
from kvintro.queries.pages import excluded
from kvintro.queries.pages.census import Pages
from kvintro.queries.pages.frames import memory_of
from kvintro.queries.pages.meaning import KPF_NOPAGE
from kvintro.render import render
from kvintro.reports.info import info
from kvintro.reports.pages import pages_report
from kvintro.source import Request
from kvintro.text import size_text
from tests.conftest import VMCORES, Core
from tests.cores.test_pages_truth import _COLLECTED, SLAB, cpus, words
from tests.memory_files import bitmap_of, split, with_pages

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64",)

SAMPLE = VMCORES / "debian-6.12"
PAGE, PGTABLE, BUDDY = 4096, 1 << 26, 1 << 10
#: Lines of makedumpfile's report, and our reason.
COUNTS = {
    "Non-private cache pages": "cache",
    "Private cache pages": "cache_private",
    "User process data pages": "user",
    "Free pages": "free",
    "Hwpoison pages": "hwpoison",
    "Offline pages": "offline",
}


def pages_of(kernel: Kernel) -> Any:
    return json.loads(render(pages_report(kernel), "json"))


def facts_of(kernel: Kernel) -> Dict[str, Any]:
    """Value of each fact of ``info``; the reason if there is none."""
    facts = json.loads(render(info(kernel), "json"))["facts"]
    return {row["key"]: row["reason"] if row["value"] is None else row["value"] for row in facts}


def opened(*paths: Union[str, Path]) -> Kernel:
    names = [str(path) for path in paths]
    return open_kernel(Request(core=names if len(names) > 1 else names[0]))


def by_reason(document: Any) -> "Counter[str]":
    found: Counter[str] = Counter()
    for row in document["excluded"]:
        found[row["reason"]] += row["pages"]
    return found


# makedumpfile


@pytest.fixture(scope="module")
def vmcore(core: Core, kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The core as an ELF file that makedumpfile reads."""
    if shutil.which("makedumpfile") is None:
        pytest.skip("makedumpfile is missing (apt install makedumpfile)")
    if kernel.source.left_out:
        pytest.skip(f"pages of RAM were left out of {core.name} before makedumpfile could leave them out")
    path = tmp_path_factory.mktemp("excluded") / "vmcore"
    convert(kernel, str(path))
    yield path
    path.unlink()


def filtered(vmcore: Path, directory: Path, *words: str, files: int = 1) -> Tuple[List[str], Dict[str, int]]:
    """The files that makedumpfile makes, and its own counts."""
    names = [str(directory / f"filtered.{number}") for number in range(files)]
    command = ["makedumpfile", "--message-level", "31", *words, str(vmcore), *names]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = re.findall(rb"^ +([A-Z][\w -]+?) +: 0x([0-9a-f]+)", done.stdout, re.M)
    return names, {name.decode(): int(count, 16) for name, count in lines}


def remove(names: Sequence[str]) -> None:
    for name in names:
        Path(name).unlink()


@pytest.mark.parametrize("level", [1, 2, 4, 8, 16, 31])
def test_a_kdump_of_makedumpfile(core: Core, vmcore: Path, tmp_path: Path, level: int) -> None:
    names, theirs = filtered(vmcore, tmp_path, "-l" if level == 16 else "-c", "-d", str(level))
    kernel = opened(*names)
    document, facts = pages_of(kernel), facts_of(kernel)
    gone = memory_of(kernel).left_out
    remove(names)
    ours = by_reason(document)
    assert document["recorded_level"] == level
    expected = Counter({ours_: theirs[name] for name, ours_ in COUNTS.items()})
    assert sum(ours.values()) - ours["no_struct_page"] == sum(expected.values())
    assert sum(ours.values()) == gone.count
    if core.meta["release"].startswith(("5.", "6.1.")):
        if level == 1:
            # A kdump has all pages of zeros; makedumpfile counts those that share their data.
            assert theirs["Pages filled with zero"] > 0 and not document["excluded"]
            assert "excluded_types" not in facts
        else:
            assert +expected == Counter({r: n for r, n in ours.items() if n and r != "no_struct_page"})
            assert document["filter_level"] == facts["filter_level"] == level
        return
    # makedumpfile does not know later kernels, and takes some of their slabs for user pages, for example.
    assert ours["free"] == expected["free"]
    slabs = words(core, "kpageflags") & SLAB != 0
    true = sum(int(slabs[first:end].sum()) for first, end in gone)
    mine = sum(row["pages"] for row in document["excluded"] if row["type"] == "slab")
    assert abs(true - mine) <= _COLLECTED * cpus(core)
    if mine:
        said = re.match(
            r"the dump lacks .*?(\d+) slab pages.* next time, use a makedumpfile that supports Linux ",
            document["notes"][0],
        )
        assert said and int(said[1]) == mine
        assert document["filter_level"] is None
        assert "slab" in facts["filter_level"]


def test_pages_that_the_level_should_have_left_out(core: Core, vmcore: Path, tmp_path: Path) -> None:
    """A file whose free pages are excluded, but whose header says that all kinds are."""
    release = core.meta["release"]
    if not release.startswith(("5.", "6.1.")):
        pytest.skip(f"makedumpfile does not know which pages of {release} are user pages")
    names, everything = filtered(vmcore, tmp_path, "-c", "-d", "31")
    assert "kept_types" not in facts_of(opened(*names))
    remove(names)
    names, _ = filtered(vmcore, tmp_path, "-c", "-d", "16")
    with open(names[0], "r+b") as file:
        block = struct.unpack_from("<I", file.read(512), 428)[0]
        file.seek(block + 8)  # struct kdump_sub_header: dump_level
        assert file.read(4) == struct.pack("<i", 16)
        file.seek(block + 8)
        file.write(struct.pack("<i", 31))
    kernel = opened(*names)
    counts = {COUNTS[name]: count for name, count in everything.items() if name in COUNTS}
    found = excluded.excluded_from(kernel)
    assert found is not None
    for reason in ("user", "cache", "cache_private"):
        assert sum(n for use, n in found.overlooked.items() if use.reason == reason) == counts[reason]
    assert {use.reason for use in found.overlooked} <= {"user", "cache", "cache_private"}
    said = facts_of(kernel)["kept_types"]
    assert f"{size_text(counts['user'] << 12)} user" in said and "free" not in said
    remove(names)


def test_a_split_kdump_of_makedumpfile(vmcore: Path, tmp_path: Path) -> None:
    names, theirs = filtered(
        vmcore, tmp_path, "--split", "--splitblock-size", "16", "-c", "-d", "31", files=3
    )
    document = pages_of(opened(*names))
    remove(names)
    ours = by_reason(document)
    assert sum(ours.values()) - ours["no_struct_page"] == sum(theirs[name] for name in COUNTS)
    assert not any(row["lost"] for row in document["excluded"])
    assert document["recorded_level"] == 31


@pytest.mark.parametrize("level", [1, 31])
def test_an_elf_file_of_makedumpfile(
    core: Core, kernel: Kernel, vmcore: Path, tmp_path: Path, level: int
) -> None:
    """It has excluded pages in short runs, and lacks pages of zeros."""
    (kdump,), _ = filtered(vmcore, tmp_path, "-c", "-d", str(level))
    typed = memory_of(opened(kdump)).left_out
    remove([kdump])
    (elf,), theirs = filtered(vmcore, tmp_path, "-E", "-d", str(level))
    other = opened(elf)
    document = pages_of(other)
    gone = memory_of(other).left_out
    remove([elf])
    ours = by_reason(document)
    assert sum(ours.values()) == gone.count > 0
    assert document["recorded_level"] is None
    assert document["filter_level"] & 1
    assert not any("makedumpfile that supports" in note for note in document["notes"])
    # All pages of RAM that only the ELF file lacks are zeros. Firmware has no struct pages.
    zeros = gone - typed
    words_of = words(core, "kpageflags").tolist()
    for first, end in zeros:
        for pfn in range(first, min(end, len(words_of))):
            if words_of[pfn] != 1 << KPF_NOPAGE:
                assert not any(kernel.read_physical(pfn * PAGE, PAGE)), pfn
    if level == 31:
        assert ours["zero"] <= zeros.count
        assert 0 < ours["free"] <= theirs["Free pages"]


# Files made here from a sample


@pytest.fixture(scope="module")
def sample() -> bytes:
    return (SAMPLE / "core.kdump").read_bytes()


@pytest.fixture(scope="module")
def flags() -> List[int]:
    """/proc/kpageflags of the sample."""
    found: List[int] = words(Core(SAMPLE), "kpageflags").tolist()
    return found


def without(kdump: bytes, frames: Sequence[int], level: int) -> bytes:
    """A kdump that lacks page frames, and that records a level."""
    note = opened(SAMPLE / "core.kdump").prog["VMCOREINFO"].string_()
    made = bytearray(with_pages(kdump, dict.fromkeys(frames), note))
    struct.pack_into("<i", made, PAGE + 8, level)
    return bytes(made)


def frames_with(flags: Sequence[int], bit: int, count: int) -> List[int]:
    """The last page frames that have a flag."""
    return [frame for frame, each in enumerate(flags) if each & bit][-count:]


def test_slab_pages_that_are_missing(
    sample: bytes, flags: List[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "core"
    frames = frames_with(flags, SLAB, 12) + frames_with(flags, PGTABLE, 1) + frames_with(flags, BUDDY, 300)
    path.write_bytes(without(sample, frames, 31))
    kernel = opened(path)
    document, facts = pages_of(kernel), facts_of(kernel)
    assert by_reason(document) == {"free": 300, "none": 13}
    assert {row["type"] for row in document["excluded"]} == {"free", "slab", "pgtable"}
    assert (document["filter_level"], document["recorded_level"]) == (None, 31)
    assert facts["excluded_types"] == "1.17 MB free; no level excludes 48 KB slab, 4 KB pgtable"
    line = (
        "the dump lacks 12 slab pages and 1 page table, which no level of makedumpfile excludes: it did not "
        "know this kernel, so lists end early; next time, use a makedumpfile that "
        "supports Linux 6.12, or -d 1"
    )
    assert document["notes"][0] == line
    for command, first in (("info", 0), ("pages", 2)):
        main(["-c", str(path), command])
        lines = capsys.readouterr().out.splitlines()
        assert lines[first] == line
        assert lines.count(line) == 1


def test_every_command_says_why_lists_end(
    sample: bytes, flags: List[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a dump that lacks slab pages; a complete answer needs no explanation."""
    path = tmp_path / "core"
    path.write_bytes(without(sample, frames_with(flags, SLAB, 1000), 31))
    line = "the dump lacks 1000 slab pages, which no level of makedumpfile excludes"
    for command, place in ((["user"], 0), (["check"], 0), (["show", "modules"], 0), (["layout"], 2)):
        assert main(["-c", str(path), *command]) == 4
        out = capsys.readouterr().out
        assert out.splitlines()[place].startswith(line)
        assert out.count(line) == 1
    assert main(["-c", str(path), "ptdump", "--pid", "165"]) == 3
    assert f"hint: {line}" in capsys.readouterr().err
    assert main(["-c", str(path), "translate", "init_task"]) == 0
    assert line not in capsys.readouterr().out


@pytest.mark.parametrize(("level", "found"), [(16, 16), (31, 31), (1, 16), (64, 16)])
def test_free_pages_that_are_missing(
    sample: bytes, flags: List[int], tmp_path: Path, level: int, found: int
) -> None:
    """The recorded level counts if it excludes what is missing (QEMU records 1)."""
    path = tmp_path / "core"
    path.write_bytes(without(sample, frames_with(flags, BUDDY, 300), level))
    kernel = opened(path)
    document = pages_of(kernel)
    assert by_reason(document) == {"free": 300}
    assert document["filter_level"] == facts_of(kernel)["filter_level"] == found
    assert document["left_out"] == 300 * PAGE
    assert not any("makedumpfile" in note for note in document["notes"])


def test_struct_pages_that_are_missing(sample: bytes, flags: List[int], tmp_path: Path) -> None:
    """Nothing is said about pages whose struct pages are missing. With -e, all of these are excluded, too."""
    kernel = opened(SAMPLE / "core.kdump")
    free = frames_with(flags, BUDDY, 4000)
    block = next(at for at in range(free[0] + 64 & -64, free[-1], 64) if set(range(at, at + 64)) <= set(free))
    struct_page = kernel.facts.memory_map.value + block * kernel.page_struct_size.value & ALL
    physical = kernel.walk(struct_page).physical
    assert physical is not None
    frame, path = physical // PAGE, tmp_path / "core"
    path.write_bytes(without(sample, [frame], 31))
    document = pages_of(opened(path))
    assert by_reason(document) == {"struct_pages": 1}
    assert document["notes"][0].startswith("the dump lacks the struct pages of 64 pages, ")
    assert document["filter_level"] is None
    path.write_bytes(without(sample, [frame, *range(block, block + 64)], 31))
    document = pages_of(opened(path))
    assert by_reason(document) == {"struct_pages": 1, "unknown": 64}
    assert document["filter_level"] == 31
    assert not any("makedumpfile" in note for note in document["notes"])


def test_a_sample_of_page_frames(
    sample: bytes, flags: List[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a large machine, `info` looks at every nth section and says so."""
    path = tmp_path / "core"
    frames = frames_with(flags, SLAB, 12) + frames_with(flags, BUDDY, 300)
    path.write_bytes(without(sample, frames, 31))
    kernel = opened(path)
    ranges = Pages(kernel).sections.ranges
    if len(ranges) < 2:
        pytest.skip("the sample has one section")
    monkeypatch.setattr(excluded, "_SAMPLE", ranges[0][1] - ranges[0][0])
    found = excluded.excluded_from(kernel)
    assert found is not None and not found.whole and found.pages == 312


def first_lost(kdump: bytes, size: int) -> int:
    """The first page frame whose data is not in the first bytes of a kdump."""
    _, block, sub, bitmap = struct.unpack_from("<IiiI", kdump, 424)
    dumped = (frame for frame, bit in enumerate(reversed(bin(bitmap_of(kdump))[2:])) if bit == "1")
    descriptors = (
        struct.unpack_from("<qI", kdump, at) for at in range((1 + sub + bitmap) * block, len(kdump), 24)
    )
    for frame, (offset, length) in zip(dumped, descriptors):
        if offset + length > size:
            return frame
    raise AssertionError("nothing is lost")


def test_a_part_that_was_not_given(sample: bytes, flags: List[int], tmp_path: Path) -> None:
    """Its pages are lost, and not excluded."""
    run = next(at for at in range(0, len(flags), 64) if all(each & BUDDY for each in flags[at : at + 64]))
    bounds = (0, run, run + 64, bitmap_of(sample).bit_length())
    paths = []
    for number, data in enumerate(split(sample, bounds)):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(data)
    whole, some = pages_of(opened(*paths)), pages_of(opened(paths[0], paths[2]))
    assert not whole["excluded"] and not any(by_reason(some).values())
    assert sum(row["lost"] for row in some["excluded"]) == 64


@pytest.mark.parametrize("marked", [False, True], ids=["cut off", "marked as incomplete"])
def test_pages_that_are_lost(sample: bytes, flags: List[int], tmp_path: Path, marked: bool) -> None:
    """Truncated, or by makedumpfile on a full disk."""
    data, path = bytearray(without(sample, frames_with(flags[:0x2000], BUDDY, 30), 31)), tmp_path / "core"
    size = len(sample) - 4096
    if marked:
        (status,) = struct.unpack_from("<I", data, 424)
        struct.pack_into("<I", data, 424, status | 8)
    first = first_lost(bytes(data), size)
    lost = bin(bitmap_of(bytes(data)) >> first).count("1")
    # The notes are at the end; without them VMCOREINFO is found in memory.
    path.write_bytes(data[:size])
    kernel = opened(path)
    document = pages_of(kernel)
    assert sum(row["lost"] for row in document["excluded"]) == lost > 0
    assert sum(by_reason(document).values()) == 30
    assert facts_of(kernel)["lost_types"]
    assert any(
        ("could not write all" in note) is marked
        for note in document["notes"]
        if "rest" in note or "trunc" in note
    )


def test_what_was_erased(sample: bytes, tmp_path: Path) -> None:
    """The text of makedumpfile's eraseinfo, which a hostile file may have changed."""
    text = b"erase jprobes.name\nerase \x1b[31mkeys\n"
    data, path = bytearray(sample), tmp_path / "core"
    struct.pack_into("<qQ", data, PAGE + 64, len(data), len(text))
    path.write_bytes(bytes(data) + text)
    shown = render(info(opened(path)), "text")
    assert "\nerased when dumped" in shown and "erase jprobes.name, erase " in shown
    assert "\x1b" not in shown


def test_nothing_is_said_about_a_whole_dump(core: Core, kernel: Kernel) -> None:
    if kernel.source.left_out != 0:
        pytest.skip("pages were excluded from this core")
    document = pages_of(kernel)
    assert not document["excluded"] and document["filter_level"] is None
    assert not {"excluded_types", "filter_level", "lost_types", "erased"} & set(facts_of(kernel))
