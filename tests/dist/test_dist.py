# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of ``make dist``, each installed into its own environment and run outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Iterator

import pytest

import kvintro
from tests.conftest import VMCORES

DIST = VMCORES.parent / "dist"
BUILT = [*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")]
SAMPLE = VMCORES / "debian-6.12/core.kdump"
#: An environment in which nothing points back to the repository.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DRGN"))}

# As drgn's own command line opens a program: the entry point provides the command.
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


def test_the_sdist_has_every_file() -> None:
    """So that make test works in it."""
    if not (DIST.parent / ".git").exists():
        pytest.skip("this is not a clone, so git cannot list the files")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=DIST.parent, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    (sdist,) = (path for path in BUILT if path.suffix == ".gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert len(listed) > 500
    assert set(listed) <= names


@pytest.fixture(scope="module", params=BUILT, ids=lambda path: "wheel" if path.suffix == ".whl" else "sdist")
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment that contains only one of them and its dependencies."""
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
    assert _run(installed, "kvintro", "--version").split("\n")[0] == f"kvintro {kvintro.__version__}"
    document = json.loads(_run(installed, "kvintro", "-c", str(SAMPLE), "--json", "layout"))
    assert document["kernel"]["release"] == json.loads((SAMPLE.parent / "meta.json").read_text())["release"]
    _run(installed, "kvintro", "-c", str(SAMPLE), "report", "-o", str(installed / "report.html"))
    assert "<svg" in (installed / "report.html").read_text(encoding="utf-8")


def test_the_single_file(tmp_path: Path) -> None:
    """kvintro.pyz, as on a host that has drgn and numpy."""
    file = tmp_path / "kvintro.pyz"
    shutil.copy(DIST.parent / "build/kvintro.pyz", file)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(file), *arguments],
            cwd=tmp_path,
            env={**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("--version").stdout.startswith(f"kvintro {kvintro.__version__}\n")
    done = run("-c", str(SAMPLE), "--json", "layout")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kernel"]["types"] == "BTF"
    assert run("-c", str(SAMPLE), "report", "-o", "report.html").returncode == 0
    assert run("-c", str(tmp_path / "missing"), "layout").returncode == 3
    with zipfile.ZipFile(file) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


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
