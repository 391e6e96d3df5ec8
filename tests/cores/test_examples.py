# SPDX-License-Identifier: LGPL-2.1-or-later
"""The examples run as documented."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, List, Mapping, Tuple

import pytest

from kvintro.parser import parse
from tests.conftest import ROOT, VMCORES

SAMPLE = VMCORES / "debian-6.12/core.kdump"
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def test_a_report_beside_each_vmcore(tmp_path: Path) -> None:
    for name in ("202611280001/dump.202611280001", "127.0.0.1-2026-11-28/vmcore", "damaged/vmcore"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"not a dump")
    good = tmp_path / "127.0.0.1-2026-11-28/vmcore"
    shutil.copy(SAMPLE, good)

    def run() -> "subprocess.CompletedProcess[str]":
        script = ROOT / "examples/kdump/kvintro-kdump-report"
        return subprocess.run(
            [script, tmp_path], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )

    first = run()
    assert first.returncode == 1, "two of them are not dumps"
    assert first.stdout == f"{good}.kvintro.html\n"
    assert first.stderr.count("kvintro: ") == 2
    assert [path.name for path in tmp_path.glob("*/*.html")] == ["vmcore.kvintro.html"]
    written = Path(f"{good}.kvintro.html").stat().st_mtime_ns
    assert run().stdout == "", "the report is there"
    assert Path(f"{good}.kvintro.html").stat().st_mtime_ns == written


# Run as drgn runs a script. QEMU's kdump files do not name their architecture, so it is given here.
_RUN = """
import drgn, runpy, sys
prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
prog.set_core_dump(sys.argv[1])
runpy.run_path(sys.argv[2], {"prog": prog}, "__main__")
"""


def test_a_script_for_drgn() -> None:
    script = ROOT / "examples/drgn/mapped_by_region.py"
    run = subprocess.run(
        [sys.executable, "-c", _RUN, SAMPLE, script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    starts = {line.split()[2]: line.split()[0] for line in run.stdout.splitlines()}
    values = dict(
        line.split()[0::3] for line in (SAMPLE.parent / "truth/values").read_text().splitlines()[1:6]
    )
    assert starts["direct_map"] == values["page_offset_base"]
    assert starts["vmemmap"] == values["vmemmap_base"]


def test_a_plugin_for_sos(monkeypatch: pytest.MonkeyPatch) -> None:
    """sos is not installed here, so stand-ins take the place of its classes."""
    asked: List[Tuple[str, Mapping[str, Any]]] = []

    class Plugin:
        def add_cmd_output(self, command: str, **options: Any) -> None:
            asked.append((command, options))

    plugins = ModuleType("sos.report.plugins")
    systems = ("RedHatPlugin", "DebianPlugin", "UbuntuPlugin")
    vars(plugins).update({name: type(name, (), {}) for name in systems}, Plugin=Plugin)
    for name, module in {"sos": ModuleType("sos"), "sos.report": ModuleType("sos.report")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "sos.report.plugins", plugins)
    runpy.run_path(str(ROOT / "examples/sos/kvintro.py"))["Kvintro"]().setup()
    for command, options in asked:
        program, *words = shlex.split(command)
        args = parse(words)
        assert (program, args.format, args.core, args.output) == ("kvintro", "json", None, None)
        assert options["suggest_filename"] == f"{args.command}.json"
        assert options["env"] == {"KVINTRO_CORE": ""}
    assert [parse(shlex.split(command)[1:]).command for command, _ in asked] == ["layout", "kaslr", "check"]
