# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps of architectures whose page tables kvintro does not know: only ``info`` describes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List

import drgn
import pytest

from kvintro.cli import main
from kvintro.commands import command_names
from tests.memory_files import flattened
from tests.other_dumps import KERNELS, RAM, UTS, MadeUp
from tests.synthetic import elf_core

Facts = Callable[..., Dict[str, Dict[str, Any]]]
S390X, PPC64LE = KERNELS["s390x"], KERNELS["ppc64le, header by QEMU"]
#: How to call the commands that need more than a dump.
ARGUMENTS: Dict[str, List[str]] = {
    "aliases": ["0"],
    "convert": ["-o", "new"],
    "diff": ["DUMP"],
    "explain": ["--all"],
    "identify": ["0"],
    "page": ["0"],
    "pte": ["0"],
    "read": ["0"],
    "search": ["0"],
    "translate": ["0"],
}


@pytest.fixture
def facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Facts:
    """The facts that ``info`` shows of files, by their keys."""

    def run(*contents: bytes, more: List[str] = []) -> Dict[str, Dict[str, Any]]:  # noqa: B006
        words: List[str] = []
        for number, content in enumerate(contents):
            (tmp_path / f"dump{number}").write_bytes(content)
            words += ["-c", str(tmp_path / f"dump{number}")]
        assert main([*words, "info", "--json", *more]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return {fact["key"]: fact for fact in json.loads(out)["facts"]}

    return run


def check_kernel(found: Dict[str, Dict[str, Any]], kernel: MadeUp) -> None:
    """Compare facts with the kernel that the dump was made of."""
    values = {key: fact["value"] for key, fact in found.items()}
    assert values["release"] == kernel.release
    assert values["build_id"] == bytes(range(20)).hex()
    assert values["arch"] == kernel.machine
    assert values["byte_order"] == {"<": "little-endian", ">": "big-endian"}[kernel.order]
    assert values["page_size"] == kernel.page
    assert values["ranges"] == f"0-{RAM - 1:x}"
    assert (values["memory"], values["left_out"], values["complete"]) == (RAM, 0, True)
    assert found["arch"]["provenance"] == "init_uts_ns"


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_vmcoreinfo_in_memory(facts: Facts, kernel: MadeUp) -> None:
    memory = kernel.memory(kernel.text())
    for content in (kernel.elf(memory), kernel.kdump(memory), flattened(kernel.kdump(memory))):
        if content[:4] != b"\x7fELF" and kernel is KERNELS["s390x before 6.10"]:
            continue  # libkdumpfile needs more of this kernel than is in this memory
        found = facts(content)
        check_kernel(found, kernel)
        assert found["vmcoreinfo"]["value"] == "found in memory at physical 0x5a000"


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_vmcoreinfo_in_a_note(facts: Facts, kernel: MadeUp) -> None:
    contents = [kernel.elf(kernel.memory(None), kernel.text())]
    if kernel is not KERNELS["s390x before 6.10"]:  # see above
        contents.append(kernel.kdump(kernel.memory(kernel.text()), kernel.text()))
    for content in contents:
        found = facts(content)
        check_kernel(found, kernel)
        assert found["vmcoreinfo"]["value"] == "the dump's note"


def test_a_kdump_by_qemu(facts: Facts) -> None:
    """QEMU writes its own name of the machine."""
    memory = S390X.memory(S390X.text())
    check_kernel(facts(S390X.kdump(memory, by_qemu="S390X")), S390X)


def test_the_note_of_another_boot(facts: Facts) -> None:
    other = S390X.text([("OSRELEASE", "6.12.1"), ("BUILD-ID", "00" * 20)])
    found = facts(S390X.elf(S390X.memory(S390X.text()), other))
    check_kernel(found, S390X)
    assert found["vmcoreinfo"]["value"].startswith("found in memory")


@pytest.mark.parametrize(
    "change",
    [
        ("BUILD-ID", "00" * 20),
        ("OSRELEASE", "6.12.1"),
        ("SYMBOL(init_uts_ns)", "0"),
        ("KERNELOFFPHYS", "text"),
        ("KERNELOFFPHYS", "fffffffffffffff"),
    ],
)
def test_memory_contradicts(facts: Facts, change: Any) -> None:
    """Then nothing of the text is shown."""
    found = facts(S390X.elf(S390X.memory(S390X.text([change]))))
    for key in ("release", "build_id", "page_size", "vmcoreinfo"):
        assert found[key]["value"] is None
        assert "no VMCOREINFO" in found[key]["reason"]
    assert (found["arch"]["value"], found["byte_order"]["value"]) == ("s390x", "big-endian")


def test_the_memory_to_compare_with_is_missing(facts: Facts) -> None:
    memory, note = PPC64LE.memory(None)[:0x20000], [("VMCOREINFO", 0, PPC64LE.text())]
    # A filter may have excluded it; here the machine does not have it.
    found = facts(elf_core([(0, 0, memory)], note, left_out={0: RAM}, machine=21, order=">"))
    assert found["release"]["value"] == PPC64LE.release
    assert found["vmcoreinfo"]["value"] == "the dump's note (not verified)"
    assert (found["arch"]["value"], found["byte_order"]["value"]) == ("ppc64", None)
    for content in (PPC64LE.elf(memory, PPC64LE.text()), PPC64LE.kdump(memory, PPC64LE.text())):
        found = facts(content)
        assert found["release"]["value"] is None
        assert "the machine has no memory at physical 0x180aa8" in found["release"]["reason"]


def test_memory_that_libkdumpfile_does_not_read(facts: Facts) -> None:
    """It refuses pages of 4 KB for ppc64."""
    kernel = replace(KERNELS["ppc64le, header by kdump"], page=4096)
    memory = kernel.memory(kernel.text())
    found = facts(kernel.kdump(memory))
    assert found["release"]["value"] is None
    assert found["release"]["reason"].endswith("its memory cannot be read")
    found = facts(kernel.kdump(memory, kernel.text()))
    assert found["release"]["value"] == kernel.release
    assert found["vmcoreinfo"]["value"] == "the dump's note (not verified)"


def test_a_number_that_is_no_page_size(facts: Facts) -> None:
    found = facts(PPC64LE.elf(PPC64LE.memory(PPC64LE.text([("PAGESIZE", "12345")]))))
    assert found["page_size"]["value"] is None
    assert found["release"]["value"] == PPC64LE.release


def test_the_header_alone(facts: Facts) -> None:
    """QEMU's header is big-endian, whatever the guest; other headers have the kernel's byte order."""
    nothing = bytes(RAM)
    by_qemu = facts(PPC64LE.elf(nothing))
    assert (by_qemu["arch"]["value"], by_qemu["byte_order"]["value"]) == ("ppc64", None)
    by_kdump = facts(KERNELS["ppc64le, header by kdump"].elf(nothing))
    assert (by_kdump["arch"]["value"], by_kdump["byte_order"]["value"]) == ("ppc64le", "little-endian")
    by_makedumpfile = facts(KERNELS["ppc64"].kdump(nothing))
    assert (by_makedumpfile["arch"]["value"], by_makedumpfile["byte_order"]["value"]) == (
        "ppc64",
        "big-endian",
    )
    s390x = facts(S390X.elf(nothing))
    assert (s390x["arch"]["value"], s390x["byte_order"]["value"]) == ("s390x", "big-endian")


@pytest.mark.parametrize("kernel", [S390X, PPC64LE])
def test_a_truncated_dump(facts: Facts, kernel: MadeUp) -> None:
    memory = kernel.memory(kernel.text())
    for cut, release in ((RAM // 8, kernel.release), (RAM // 4, None)):
        elf = facts(kernel.elf(memory)[:-cut])
        assert (elf["complete"]["value"], elf["release"]["value"]) == (False, release)
    kdump = kernel.kdump(memory, kernel.text())
    for size in (len(kdump) - 40, 4 * kernel.page + 100, 2 * kernel.page + 10):
        found = facts(kdump[:size])
        assert found["complete"]["value"] is False
        assert found["release"]["value"] in (kernel.release, None)
        assert found["arch"]["value"] in (kernel.machine, "ppc64")
    assert facts(kernel.kdump(memory, kernel.text(), status=9))["complete"]["value"] is False


def test_drgn_agrees(tmp_path: Path) -> None:
    """drgn reads the same memory of a big-endian kdump."""
    path = tmp_path / "dump"
    path.write_bytes(S390X.kdump(S390X.memory(S390X.text()), S390X.text()))
    prog = drgn.Program()
    prog.set_core_dump(path)
    assert prog.platform is not None
    assert prog.platform.arch == drgn.Architecture.S390X
    assert not prog.platform.flags & drgn.PlatformFlags.IS_LITTLE_ENDIAN
    assert prog.read(UTS, 6, True) == b"Linux\0"


def test_text_and_bug_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump"
    path.write_bytes(PPC64LE.elf(PPC64LE.memory(PPC64LE.text())))
    assert main(["-c", str(path), "info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "byte order            little-endian   (init_uts_ns)" in lines
    assert any(line.split() == ["info", "works"] for line in lines)
    assert any(line.startswith("  layout ") and "cannot" in line for line in lines)
    assert main(["-c", str(path), "info", "--bug-report"]) == 0
    out = capsys.readouterr().out
    assert PPC64LE.release in out
    assert "little-endian" in out
    assert "5a000" not in out


@pytest.mark.parametrize("command", sorted({*command_names()} - {"info", "survey"}))
@pytest.mark.parametrize("kernel", [S390X, PPC64LE], ids=["s390x", "ppc64"])
def test_every_other_command_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    kernel: MadeUp,
) -> None:
    monkeypatch.chdir(tmp_path)
    memory = kernel.memory(kernel.text())
    for content in (kernel.elf(memory), kernel.kdump(memory)):
        Path("DUMP").write_bytes(content)
        words = ["-c", "DUMP", command, *ARGUMENTS.get(command, [])]
        if command == "browse":
            monkeypatch.setattr("kvintro.browse.start.check", lambda args: None)
        assert main(words) == 3
        out, err = capsys.readouterr()
        name = "s390x" if kernel is S390X else "ppc64"
        what, hint = err.splitlines()
        assert what == (
            f"kvintro: DUMP is a dump of {name}, and kvintro does not know the page tables of {name} yet"
        )
        assert hint.startswith("  hint: kvintro info ")
        assert out == ""
    assert not Path("new").exists()


def test_raw_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without the name of its architecture."""
    path = tmp_path / "dump"
    for kernel in (S390X, PPC64LE):
        path.write_bytes(kernel.memory(kernel.text()))
        assert main(["-c", str(path), "--format-in", "raw", "info"]) == 3
        assert "is not from a kernel for" in capsys.readouterr().err


def test_vmcoreinfo_as_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump, text = tmp_path / "dump", tmp_path / "text"
    dump.write_bytes(S390X.elf(S390X.memory(S390X.text())))
    text.write_bytes(S390X.text())
    assert main(["-c", str(dump), "--vmcoreinfo", str(text), "info"]) == 3
    assert "is not from a kernel for" in capsys.readouterr().err
    assert main(["-c", str(dump), "--vmcoreinfo-at", "5a000", "info"]) == 0
    assert main(["-c", str(dump), "--vmcoreinfo-at", "6a000", "info"]) == 3
    assert "no VMCOREINFO at physical 0x6a000" in capsys.readouterr().err
