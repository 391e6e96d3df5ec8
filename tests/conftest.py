# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sample cores for every test that asks for one.

A test with a ``core`` (or ``kernel`` or ``truth``) argument runs once for each core. Which cores those are is
said with ``--cores``: ``shipped`` are those in the repository, ``built`` those that ``make vmcores`` makes.
"""

from __future__ import annotations

import json
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Dict, List, Set

import pytest
from hypothesis import HealthCheck, settings

from kvintro.kernel import Kernel, open_kernel
from kvintro.source import Request

# How long an example takes says more about the machine than about the code.
settings.register_profile("kvintro", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvintro")

ROOT = Path(__file__).resolve().parent.parent
VMCORES = ROOT / "vmcores"


class Core:
    """A core and what its own kernel said in the boot it was taken from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name
        self.truth_directory = directory / "truth"
        self.meta: Dict[str, Any] = json.loads((directory / "meta.json").read_text())

    @property
    def path(self) -> Path:
        """The dump, ELF if there is one."""
        elf = self.directory / "core.elf"
        return elf if elf.exists() else self.directory / "core.kdump"

    def truth(self, name: str) -> str:
        """A file of the kernel's own words; skips the test if this core's boot has none."""
        path = self.truth_directory / name
        if not path.exists():
            pytest.skip(f"{self.name} was taken without {name}")
        return path.read_text(errors="replace")

    def has_truth(self, name: str) -> bool:
        """Whether the kernel's words on that are there."""
        return (self.truth_directory / name).exists()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cores", choices=("shipped", "built", "all"), default="shipped")


def _found(which: str) -> List[Path]:
    patterns = {"shipped": ["*"], "built": ["built/*"], "all": ["*", "built/*"]}[which]
    return sorted(meta.parent for pattern in patterns for meta in VMCORES.glob(f"{pattern}/meta.json"))


@cache
def _core(directory: Path) -> Core:
    """The same object for every test: pytest orders tests by the values that they share."""
    return Core(directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "core" in metafunc.fixturenames:
        which = metafunc.config.getoption("--cores")
        found = _found(which)
        if not found:
            raise pytest.UsageError(f"there are no {which} cores in vmcores/; run make vmcores")
        # A worker that has a core open goes on with it (pytest-xdist, --dist loadgroup).
        each = [pytest.param(_core(d), id=d.name, marks=pytest.mark.xdist_group(d.name)) for d in found]
        metafunc.parametrize("core", each, scope="session")


class Tiers:
    """In CI a tier of which nothing ran fails the run: something that it needs is missing there."""

    def __init__(self) -> None:
        self.seen: Set[str] = set()
        self.ran: Set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tier = report.nodeid.split("/")[1]
        self.seen.add(tier)
        if report.when == "call" and not report.skipped:
            self.ran.add(tier)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        empty = sorted(self.seen - self.ran)
        if empty and not hasattr(session.config, "workerinput"):
            session.config.get_terminal_writer().line(f"\nskipped whole: {', '.join(empty)}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        config.pluginmanager.register(Tiers())


@lru_cache(maxsize=3)
def _open(path: Path) -> Kernel:
    return open_kernel(Request(core=str(path)))


@pytest.fixture(scope="session")
def kernel(core: Core) -> Kernel:
    """The core opened with nothing but itself."""
    return _open(core.path)
