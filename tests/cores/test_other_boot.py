# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMCOREINFO of another boot of the same kernel, in every format, given by the user or in the dump's note.

The reference is the dumped boot: the core's own note, and the address of the note that the kernel reported.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import pytest

from kvintro.arch.x86_64.facts import x86_facts
from kvintro.cli import main
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.conftest import Core
from tests.cores.showing import needs
from tests.memory_files import avml, elf_without_notes, flattened, lime, raw, snappy, split
from tests.remade import Remade
from tests.synthetic import elf_core

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

_KASLR_STEP = 2 << 20


@pytest.fixture(scope="module", autouse=True)
def one_boot_of_each(core: Core) -> None:
    if not core.meta["kaslr"]:
        pytest.skip("formats are tried on the dump of the same kernel with KASLR")


def another_boot(note: str, by: int, *, physical: bool) -> str:
    """VMCOREINFO of the same kernel if KASLR had moved it further by this amount.

    :param physical: also in physical memory; otherwise only in virtual addresses.
    """

    def moved(found: "re.Match[str]") -> str:
        address = int(found[2], 16)
        inside = 0xFFFFFFFF80000000 <= address < 0xFFFFFFFFC0000000
        return f"{found[1]}={address + by if inside else address:x}"

    text = re.sub(r"^(SYMBOL\([^)]*\))=([0-9a-f]+)$", moved, note, flags=re.M)
    text = re.sub(r"^KERNELOFFSET=(.*)$", lambda m: f"KERNELOFFSET={int(m[1], 16) + by:x}", text, flags=re.M)
    if physical:
        return text
    return re.sub(r"^(NUMBER\(phys_base\))=(.*)$", lambda m: f"{m[1]}={int(m[2]) - by}", text, flags=re.M)


@pytest.fixture(scope="module")
def note(kernel: Kernel) -> str:
    text: str = kernel.prog["VMCOREINFO"].string_().decode()
    return text


@pytest.fixture(scope="module")
def memory(core: Core, kernel: Kernel) -> List[Tuple[int, bytes]]:
    return [(at, data) for at, data in Remade(core, kernel).segments() if not 0xC0000000 <= at < 1 << 32]


def kdump_with(data: bytes, note: bytes) -> bytes:
    """A plain kdump with another text, no longer than its own, as its one note."""
    out = bytearray(data)
    block = int.from_bytes(out[428:432], "little")
    at, size = struct.unpack_from("<QQ", out, block + 32)
    out[at : at + size] = note.ljust(size, b"\0")[:size]
    struct.pack_into("<QQQQ", out, block + 32, at, min(len(note), size), 0, 0)
    return bytes(out)


@pytest.fixture(scope="module")
def plain_kdump(core: Core) -> bytes:
    for name in ("core-raw.kdump", "core.kdump"):
        path = core.directory / name
        if path.exists() and path.read_bytes()[:8] == b"KDUMP   ":
            return path.read_bytes()
    pytest.skip("this core has no plain kdump")


#: By format: a function that writes it with a note, if the format has one.
Write = Callable[[Path, "List[Tuple[int, bytes]]", str], object]


def _avml(path: Path, memory: "List[Tuple[int, bytes]]", note: str) -> None:
    pack = snappy()
    if pack is None:
        pytest.skip("no snappy library (pip install cramjam)")
    path.write_bytes(avml(memory, pack))


def _elf(path: Path, memory: "List[Tuple[int, bytes]]", note: str) -> None:
    notes = [("VMCOREINFO", 0, note.encode())]
    path.write_bytes(elf_core([(0, at, data) for at, data in memory], notes))


NO_NOTE: Dict[str, Write] = {
    "ELF without a note": lambda path, memory, note: path.write_bytes(elf_without_notes(memory)),
    "raw": lambda path, memory, note: raw(path, memory),
    "LiME": lambda path, memory, note: path.write_bytes(lime(memory)),
    "AVML": _avml,
}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> "Tuple[int, str, str]":
    code = main([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("physical", [False, True], ids=["moved virtually", "moved in memory too"])
@pytest.mark.parametrize("form", ["ELF", "kdump", "flattened", "split", *NO_NOTE])
def test_given(
    core: Core,
    note: str,
    memory: "List[Tuple[int, bytes]]",
    plain_kdump: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    physical: bool,
) -> None:
    """A wrong one is refused, and the matching one is named. The right one is accepted."""
    paths = [tmp_path / "dump"]
    if form == "ELF":
        _elf(paths[0], memory, note)
    elif form == "kdump":
        paths[0].write_bytes(plain_kdump)
    elif form == "flattened":
        paths[0].write_bytes(flattened(plain_kdump, 1 << 16))
    elif form == "split":
        paths = [tmp_path / "part0", tmp_path / "part1"]
        for path, data in zip(paths, split(plain_kdump, [0, 10000, 1 << 20])):
            path.write_bytes(data)
    else:
        NO_NOTE[form](paths[0], memory, note)
    named = [word for path in paths for word in ("-c", str(path))]
    given = tmp_path / "given"
    for by in (_KASLR_STEP, 16 * _KASLR_STEP):
        given.write_text(another_boot(note, by, physical=physical))
        code, out, err = run(capsys, *named, "--vmcoreinfo", str(given), "info")
        assert (code, out) == (3, "")
        what, hint = err.splitlines()
        assert "is not the VMCOREINFO of" in what
        where = "the dump's note" if form not in NO_NOTE else "found in memory at physical 0x"
        assert where in hint and "fits" in hint
    given.write_bytes(b"\xef\xbb\xbf" + note.replace("\n", "\r\n").encode())
    code, out, err = run(capsys, *named, "--vmcoreinfo", str(given), "info")
    assert (code, err) == (0, "")
    assert re.search("^VMCOREINFO  +--vmcoreinfo$", out, re.M)
    for path in paths:
        path.unlink()


@pytest.mark.parametrize("kind", ["another boot", "empty", "cut"])
@pytest.mark.parametrize("form", ["ELF", "kdump", "flattened"])
def test_a_wrong_note(
    core: Core,
    kernel: Kernel,
    note: str,
    memory: "List[Tuple[int, bytes]]",
    plain_kdump: bytes,
    tmp_path: Path,
    form: str,
    kind: str,
) -> None:
    """The dump's own note is ignored, and the one in its memory is found."""
    wrong = {"another boot": another_boot(note, _KASLR_STEP, physical=False), "empty": "", "cut": note[:600]}
    path = tmp_path / "dump"
    if form == "ELF":
        _elf(path, memory, wrong[kind])
    else:
        data = kdump_with(plain_kdump, wrong[kind].encode())
        path.write_bytes(data if form == "kdump" else flattened(data, 1 << 16))
    source = open_kernel(Request(core=str(path), types="none")).source
    path.unlink()
    assert source.vmcoreinfo == kernel.source.vmcoreinfo
    assert "found in memory" in source.vmcoreinfo_origin
    if core.has_truth("vmcoreinfo"):
        address = int(core.truth("vmcoreinfo").split()[0], 16)
        assert int(source.vmcoreinfo_origin.rpartition(" ")[2], 16) == address
    said = [warning for warning in source.warnings if "was rejected" in warning]
    assert said or (kind == "empty" and form != "ELF")  # an empty note in a kdump counts as missing


#: A line that cannot be compared before there are symbols.
WRONG_LINES: Dict[str, Callable[[str], str]] = {
    "KERNELOFFSET": lambda value: f"{int(value, 16) - _KASLR_STEP:x}",
    "NUMBER(sme_mask)": lambda value: str(1 << 47),
    "BUILD-ID": lambda value: "ab" * (len(value) // 2),
    "SIZE(page)": lambda value: "128",
}


@pytest.mark.parametrize("key", WRONG_LINES)
@pytest.mark.parametrize("form", ["ELF", "kdump", "LiME"])
def test_one_wrong_line(
    note: str,
    kernel: Kernel,
    memory: "List[Tuple[int, bytes]]",
    plain_kdump: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    key: str,
) -> None:
    """The reference is the kernel's own copy, which a symbol points to."""
    needs(kernel, "vmcoreinfo_note")
    found = re.search(rf"^{re.escape(key)}=(.*)$", note, re.M)
    if found is None or (key == "KERNELOFFSET" and not int(found[1], 16)):
        pytest.skip(f"this kernel says nothing of {key}")
    line = f"{key}={WRONG_LINES[key](found[1])}"
    wrong = note.replace(found[0], line)
    path, given = tmp_path / "dump", tmp_path / "given"
    given.write_text(wrong)
    if form == "LiME":
        path.write_bytes(lime(memory))
    elif form == "ELF":
        _elf(path, memory, wrong)
    else:
        path.write_bytes(kdump_with(plain_kdump, wrong.ljust(len(note)).encode()[: len(note)]))
    code, out, err = run(capsys, "-c", str(path), "--vmcoreinfo", str(given), "info")
    assert (code, out) == (3, "")
    what, hint = err.splitlines()
    assert line.partition("=")[2] in what
    assert "without --vmcoreinfo" in hint or "boot that was dumped" in hint
    if form == "ELF":
        source = open_kernel(Request(core=str(path), types="none")).source
        assert source.vmcoreinfo == kernel.source.vmcoreinfo
        assert source.vmcoreinfo_origin == "the kernel's own copy in memory"
        assert any(line in warning for warning in source.warnings)
    path.unlink()


@pytest.mark.parametrize("lost", ["init_uts_ns", "page tables"])
def test_what_cannot_be_verified(
    core: Core, kernel: Kernel, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    """The memory to compare with was excluded: the note is used, and marked as not verified."""
    made = Remade(core, kernel)
    base = x86_facts(kernel).phys_base.value - 0xFFFFFFFF80000000
    if lost == "init_uts_ns":
        where = int(kernel.source.vmcoreinfo["SYMBOL(init_uts_ns)"], 16) + base
    else:
        where = kernel.root.value
    made.leave_out(where & ~0xFFF)
    path = made.as_vmcore(tmp_path / "dump")
    code, out, err = run(capsys, "-c", str(path), "info")
    assert err == ""
    assert code == 0
    assert re.search(r"^VMCOREINFO  +the dump's note \(not verified\)$", out, re.M)
    assert "could not be verified" in out
    path.unlink()
