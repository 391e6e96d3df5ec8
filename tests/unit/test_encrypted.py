# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps that a host takes of a guest with encrypted memory: a clear message and a remedy."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Dict

import pytest

from kvintro.cli import main
from tests.memory_files import lime
from tests.synthetic import elf_core, vmcoreinfo

MB = 1 << 20


def ciphertext(size: int, plain: int = 0) -> bytes:
    """Random pages; the last ones are shared with the host (DMA buffers), or were never touched."""
    chosen = random.Random(1)
    text = (b"shared with the host, in plain text " * 114)[:4096]
    return chosen.randbytes(size - plain) + text * (plain // 8192) + bytes(plain - plain // 8192 * 4096)


def forms(memory: bytes) -> Dict[str, bytes]:
    note = [("VMCOREINFO", 0, vmcoreinfo(more={"SYMBOL(init_uts_ns)": "ffffffff81800700"}).encode())]
    return {
        "ELF without a note": elf_core([(0, 0, memory)]),
        "ELF with a note": elf_core([(0, 0, memory)], note),
        "LiME": lime([(0, memory)]),
        "raw": memory,
    }


@pytest.mark.parametrize("form", ["ELF without a note", "ELF with a note", "LiME", "raw"])
@pytest.mark.parametrize("plain", [0, MB])
def test_ciphertext(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, plain: int) -> None:
    path = tmp_path / "memory"
    path.write_bytes(forms(ciphertext(64 * MB, plain))[form])
    assert main(["-c", str(path), "layout"]) == 3
    what, hint = capsys.readouterr().err.splitlines()
    assert "its memory looks encrypted, as the host's view of a guest with SEV does" in what
    assert hint == "  hint: take the dump inside the guest (kdump); a guest's memory is plain there"
    assert (form == "raw") == ("is not a kernel dump, or " in what)


def test_memory_that_the_host_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory"
    path.write_bytes(elf_core([(0, 0, bytes(16 * MB))]))
    assert main(["-c", str(path), "layout"]) == 3
    assert "all of its memory reads as zeros: the host cannot read" in capsys.readouterr().err


def test_other_memory_is_not_called_encrypted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel without VMCOREINFO, with half of its memory compressed or random."""
    path = tmp_path / "memory"
    path.write_bytes(elf_core([(0, 0, ciphertext(16 * MB) + b"some text " * (2 * MB))]))
    assert main(["-c", str(path), "layout"]) == 3
    err = capsys.readouterr().err
    assert "encrypted" not in err
    assert "no VMCOREINFO was found" in err
