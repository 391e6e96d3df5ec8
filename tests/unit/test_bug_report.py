# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvintro info --bug-report`: nothing in it identifies a machine, its addresses or its users."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kvintro.cli import main
from kvintro.reports.bug_report import redacted
from tests.conftest import VMCORES


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose name is not a word of the texts here."""
    name = os.uname_result(("Linux", "ada.lab.example", "6.12", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("VMCOREINFO at ffffffff81234567, 0x1000, 0xfffff", "VMCOREINFO at ADDRESS, 0x1000, ADDRESS"),
        ("DWARF of /home/ada/vmlinux (ok)", "DWARF of PATH (ok)"),
        ("../dumps/a: short", "PATH: short"),
        ("~/dumps/a", "PATH"),
        ("/proc/kcore and 1/2 and zlib/lzo", "/proc/kcore and 1/2 and zlib/lzo"),
        ("nfs 192.168.1.77 and fe80:0:0:1::2", "nfs HOST and HOST"),
        ("154686 symbols, 4 levels, feedback", "154686 symbols, 4 levels, feedback"),
    ],
)
def test_redaction(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_the_name_of_this_host() -> None:
    assert redacted("on ada.lab.example, ada, adapter") == "on HOST, HOST, adapter"


@pytest.mark.parametrize("name", ["debian-6.12", "debian-7.3", "oracle-6.12"])
def test_a_sample(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = VMCORES / name
    dump = str(directory / "core.kdump")
    target = tmp_path / "report.txt"
    assert main(["-c", dump, "info", "--bug-report", "-o", str(target)]) == 0
    text = target.read_text()
    assert text == capsys.readouterr().out, "it is shown, too"
    assert "Read this before you send it" in text
    assert (directory / "truth/release").read_text().strip() in text
    assert str(VMCORES) not in text and "core.kdump" not in text
    (line,) = (line for line in text.split("\n") if line.startswith("command line  "))
    for word in (directory / "truth/cmdline").read_text().split():
        assert (word in line) == word.startswith(("init_on_free", "secretmem", "pti", "nokaslr")), word
    without = "\n".join(line for line in text.split("\n") if not line.startswith("build id"))
    assert not re.search(r"\b(0x[0-9a-f]{5,}|[0-9a-f]{8,})", without)
    assert "@" not in text, "the banner names who built the kernel"


def test_without_a_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kvintro.commands.info.kcore_can_be_read", lambda: False)
    assert main(["info", "--bug-report"]) == 0
    said = capsys.readouterr().out
    assert "Python" in said and "this host" in said and "release" not in said
