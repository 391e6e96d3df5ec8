# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory encryption: the same kernel with the C-bit in each page-table entry gives the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from kvintro.cli import main
from kvintro.kernels import Kernel
from tests.conftest import Core
from tests.cores.showing import needs
from tests.remade import Remade, encrypt, process_roots

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

_FORMS: Dict[str, Callable[[Remade, Path], Path]] = {
    "QEMU's ELF": Remade.as_qemu,
    "vmcore": Remade.as_vmcore,
    "kdump": Remade.as_kdump,
    "raw": Remade.as_raw,
}
#: AMD's C-bit is 47 on Zen 1 and 51 since; TDX's shared bit is 47 or 51.
_BITS = {"QEMU's ELF": 51, "vmcore": 47, "kdump": 47, "raw": 51}

_TIMES = ("seconds", "rate")


def answers(path: Path, questions: List[List[str]], capsys: pytest.CaptureFixture[str]) -> List[Any]:
    found = []
    for question in questions:
        code = main(["-c", str(path), "--json", *question])
        out, err = capsys.readouterr()
        assert not err
        found.append((question, code, json.loads(out)))
    return found


def without_encryption(value: Any, mask: int) -> Any:
    """A report with the C-bit removed from the values of entries and the names of their bits."""
    if isinstance(value, dict):
        return {key: without_encryption(v, mask) for key, v in value.items() if key not in _TIMES}
    if isinstance(value, (list, tuple)):
        return [without_encryption(v, mask) for v in value if v != "ENC"]
    if isinstance(value, str) and value.startswith("0x") and int(value, 16) < 0xFFFF << 48:
        return f"0x{int(value, 16) & ~mask:016x}"
    return value


def questions_about(kernel: Kernel, form: str) -> List[List[str]]:
    few = [["layout"], ["check"], ["pages"], ["show", "modules"]]
    if form != "QEMU's ELF":
        return few
    pid = str(max(process_roots(kernel)))
    text = f"{kernel.text.value:x}"
    vmalloc = f"{kernel.place('vmalloc').range.start:x}"
    return [
        *few,
        ["ptdump"],
        ["show", "vmalloc"],
        ["show", "direct_map"],
        ["user", pid],
        ["translate", text, vmalloc, "init_task", "200000"],
        ["identify", "init_task"],
        ["kaslr"],
    ]


@pytest.mark.parametrize("form", _FORMS)
def test_all_answers_are_the_same(
    core: Core, kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    needs(kernel, "physical_mask")
    if form == "kdump" and not (core.directory / "core.kdump").exists():
        pytest.skip("this core has no kdump")
    mask = 1 << _BITS[form]
    path = tmp_path / "vmcore"
    questions = questions_about(kernel, form)
    remade = Remade(core, kernel)
    plain = answers(_FORMS[form](remade, path), questions, capsys)
    encrypt(remade, _BITS[form])
    encrypted = answers(_FORMS[form](remade, path), questions, capsys)
    for (question, code, before), (_, code_now, now) in zip(plain, encrypted):
        assert code == code_now, question
        assert without_encryption(before, mask) == without_encryption(now, mask), question
