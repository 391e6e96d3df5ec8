# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``make dist`` built, installed into environments of their own and run outside of the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

import kvintro
from tests.conftest import VMCORES

DIST = VMCORES.parent / "dist"
BUILT = [*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")]
SAMPLE = VMCORES / "debian-6.12/core.kdump"
#: Nothing of this process's leads back to the repository.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DRGN"))}

# As drgn's own command line opens a program: the entry point brings the command.
_SESSION = """
import drgn, kvintro
from drgn.commands import run_command
prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
prog.set_core_dump({core!r})
run_command(prog, "kvintro translate init_task --format csv")
print(kvintro.__file__)
"""

pytestmark = pytest.mark.skipif(not BUILT, reason="nothing is built: make dist")


def test_both_were_built() -> None:
    assert sorted(path.name for path in BUILT) == [
        f"kvintro-{kvintro.__version__}-py3-none-any.whl",
        f"kvintro-{kvintro.__version__}.tar.gz",
    ]


@pytest.fixture(scope="module", params=BUILT, ids=lambda path: "wheel" if path.suffix == ".whl" else "sdist")
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with nothing in it but one of them and what it asks for."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin/pip"), "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, str(request.param)], check=True, cwd=place, env=ENVIRONMENT)
    yield place


def _run(place: Path, program: str, *arguments: str) -> str:
    command = [str(place / "bin" / program), *arguments]
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_it_runs(installed: Path) -> None:
    assert _run(installed, "kvintro", "--version") == f"kvintro {kvintro.__version__}\n"
    document = json.loads(_run(installed, "kvintro", "-c", str(SAMPLE), "--json", "layout"))
    assert document["kernel"]["release"] == json.loads((SAMPLE.parent / "meta.json").read_text())["release"]
    _run(installed, "kvintro", "-c", str(SAMPLE), "report", "-o", str(installed / "report.html"))
    assert "<svg" in (installed / "report.html").read_text(encoding="utf-8")


def test_drgn_finds_it(installed: Path) -> None:
    *rows, place = _run(installed, "python", "-c", _SESSION.format(core=str(SAMPLE))).splitlines()
    assert "mapped" in rows[-1]
    assert Path(place).is_relative_to(installed)


def test_its_files_are_where_they_are_looked_for(installed: Path) -> None:
    for name in (
        "share/man/man1/kvintro.1",
        "share/bash-completion/completions/kvintro.bash",
        "share/zsh/site-functions/_kvintro",
    ):
        assert (installed / name).is_file(), name
    package = Path(_run(installed, "python", "-c", "import kvintro; print(kvintro.__path__[0])").strip())
    assert (package / "py.typed").is_file()
    assert (package / "schema/layout.json").is_file()
    assert list(package.parent.glob("kvintro-*.dist-info/licenses/LICENSE"))
    assert not list(package.parent.glob("tests"))
