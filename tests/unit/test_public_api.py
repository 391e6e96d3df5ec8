# SPDX-License-Identifier: LGPL-2.1-or-later
"""The public API as its users see it: typed, documented, and fast to import."""

from __future__ import annotations

import inspect
import os
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

import kvintro
from kvintro.methods import Commands
from kvintro.prompt import Kernel, Region
from tests.conftest import ROOT

SCRIPT = ROOT / "tests" / "user_script.py"
# The newest supported Python, and the oldest one that mypy still supports.
VERSIONS = ("3.10", "3.13")
CORE = ROOT / "vmcores" / "debian-6.12" / "core.kdump"


def test_a_user_s_script_runs() -> None:
    if not CORE.exists():
        pytest.skip("the sample dump is not there")
    done = subprocess.run(
        [sys.executable, SCRIPT, CORE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _mypy(directory: Path, script: str, *options: str) -> str:
    """The output of mypy --strict for a script that sees only the package of this repository."""
    pytest.importorskip("mypy", reason="Python's mypy is missing (pip install '.[lint]')")
    (directory / "script.py").write_text(script)
    (directory / "site").mkdir()
    (directory / "site" / "kvintro").symlink_to(Path(kvintro.__file__).parent)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", directory / "cache", *options, "script.py"],
        cwd=directory,
        env={**os.environ, "MYPYPATH": str(directory / "site")},
        capture_output=True,
        text=True,
        check=False,
    ).stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_a_user_s_script_is_typed(tmp_path: Path, version: str) -> None:
    found = _mypy(tmp_path, SCRIPT.read_text(), "--python-version", version)
    assert found.startswith("Success"), found
    assert (Path(kvintro.__file__).parent / "py.typed").exists()


def test_a_wrong_script_is_refused(tmp_path: Path) -> None:
    """This shows that the test above can fail."""
    wrong = 'import kvintro\nk = kvintro.open("core")\nk.layout(hole=False)\nk.layout()[0].size + "x"\n'
    found = _mypy(tmp_path, wrong)
    assert "script.py:3" in found and "script.py:4" in found


def test_help_shows_parameters() -> None:
    text = pydoc.plain(pydoc.render_doc(Kernel.translate))
    assert "*addresses" in text and "walk: 'bool' = False" in text and "**options" not in text
    assert ":param walk:" in text
    for name, method in inspect.getmembers(Kernel, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name
            assert name == "run" or "Any" not in str(inspect.signature(method)), name


def test_what_regions_and_kernels_share_has_one_signature() -> None:
    def options(function: Callable[..., object], *without: str) -> object:
        found = inspect.signature(function).parameters
        return {k: (v.annotation, v.default) for k, v in found.items() if k not in ("self", *without)}

    assert options(Region.show) == options(Commands.show, "region")
    assert options(Region.table, "name") == options(Commands.show, "region", "table")


def test_the_package_offers_what_it_says() -> None:
    assert callable(kvintro.open) and callable(kvintro.kernel)
    assert set(kvintro.__all__) <= set(dir(kvintro))
    with pytest.raises(AttributeError, match="nonsense"):
        kvintro.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_importing_it_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import kvintro; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} <= {"kvintro", "__future__", "typing"} | set(
        sys.stdlib_module_names if sys.version_info >= (3, 10) else done.stdout.split()
    )
    assert [n for n in done.stdout.split() if n.startswith("kvintro")] == ["kvintro", "kvintro.version"]
