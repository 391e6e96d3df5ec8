# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sample cores for tests.

A test with a ``core`` (or ``kernel`` or ``truth``) argument runs once for each core. ``--cores`` chooses the
cores: ``shipped`` are those in the repository, ``built`` those that ``make vmcores`` makes.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

import pytest
from hypothesis import HealthCheck, settings

from kvintro.arch import Architecture, by_machine
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.source import Request

# The duration of an example depends on the machine more than on the code. The examples are the same in every
# run, so that a change is judged by itself; --hypothesis-profile=explore looks for new ones.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", _PATIENT, derandomize=False)
settings.register_profile("kvintro", _PATIENT, derandomize=True, database=None)
settings.load_profile("kvintro")

ROOT = Path(__file__).resolve().parent.parent
VMCORES = ROOT / "vmcores"


class Core:
    """A core, and what its kernel reported about itself in the same boot."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.name
        self.truth_directory = directory / "truth"
        self.meta: Dict[str, Any] = json.loads((directory / "meta.json").read_text())

    @property
    def architecture(self) -> str:
        """Debian's name of the machine's architecture."""
        return str(self.meta.get("arch", "amd64"))

    @property
    def arch(self) -> Architecture:
        """kvintro's object for that architecture."""
        return by_machine({"amd64": "x86_64", "arm64": "aarch64"}.get(self.architecture, self.architecture))

    @property
    def levels(self) -> int:
        """Levels of paging, by QEMU's options and the boot loader's, or by the kernel's own macros."""
        if self.architecture == "amd64":
            return int(self.meta["levels"])
        if self.architecture == "riscv64":
            return {39: 3, 48: 4, 57: 5}[self.meta["va_bits"]]
        # A level is folded at run time if the processor has fewer bits than the kernel was built for, except
        # with pages of 64 KB (arch/arm64/include/asm/assembler.h:offset_ttbr1).
        return self.macros["CONFIG_PGTABLE_LEVELS"] - (self.has_fewer_bits and self.page_size < 1 << 16)

    @property
    def has_fewer_bits(self) -> bool:
        """Whether an arm64 kernel runs on a processor that translates fewer bits than it was built for."""
        return self.architecture == "arm64" and self.macros["VA_BITS"] != self.macros["vabits_actual"]

    @property
    def macros(self) -> Dict[str, int]:
        """The kernel's macros by name, where a module in the guest printed them."""
        lines = (line.split() for line in self.truth("layout").splitlines())
        return {fields[0]: int(fields[1], 16) for fields in lines if len(fields) == 2}

    @property
    def page_size(self) -> int:
        """PAGE_SIZE, by the kernel's own macro where an architecture has several."""
        return self.macros["PAGE_SIZE"] if self.architecture == "arm64" else 4096

    @property
    def huge_size(self) -> int:
        """PMD_SIZE: the bytes that a table of pages maps."""
        return self.page_size * (self.page_size // 8)

    @property
    def huge_name(self) -> str:
        """The same as reports print it."""
        return f"{self.huge_size >> 20}M"

    @property
    def config(self) -> Dict[str, str]:
        """The kernel's configuration, without CONFIG_; skips the test if this core does not have it."""
        packed = self.truth_directory / "config.gz"
        text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else self.truth("config")
        return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.M))

    @property
    def isolation(self) -> bool:
        """Whether user mode runs on tables of its own."""
        if self.architecture == "amd64":
            return bool(self.meta["pti"])
        return "detected: Kernel page table isolation" in self.truth("dmesg")

    @property
    def kaslr(self) -> bool:
        """Whether the kernel was booted with KASLR and had a random number.

        With EFI, arm64's has it from the firmware, or from the processor: of QEMU's, only max has some.
        """
        none = self.architecture == "arm64" and self.meta["efi"] and not self.meta["rng"]
        return bool(self.meta["kaslr"]) and not (none and self.meta["cpu"] != "max")

    @property
    def ram_base(self) -> int:
        """Physical address where RAM begins, by /proc/iomem; 0 where a few pages at 0 are reserved."""
        if self.arch.ram_from_zero:
            return 0
        found = re.search(r"^([0-9a-f]+)-[0-9a-f]+ : System RAM", self.truth("iomem"), re.M)
        assert found
        return int(found[1], 16)

    @property
    def path(self) -> Path:
        """The dump, ELF if there is one."""
        elf = self.directory / "core.elf"
        return elf if elf.exists() else self.directory / "core.kdump"

    def truth(self, name: str) -> str:
        """A file of the truth; skips the test if this core does not have it."""
        path = self.truth_directory / name
        if not path.exists():
            pytest.skip(f"{self.name} was taken without {name}")
        return path.read_text(errors="replace")

    def has_truth(self, name: str) -> bool:
        """Whether the truth has this file."""
        return (self.truth_directory / name).exists()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cores", choices=("shipped", "built", "all"), default="shipped")
    parser.addoption("--thorough", action="store_true", help="run every test on every core")


def _found(which: str) -> List[Path]:
    built = ["built/*", "built-arm64/*", "built-riscv64/*"]
    patterns = {"shipped": ["*"], "built": built, "all": ["*", *built]}[which]
    return sorted(meta.parent for pattern in patterns for meta in VMCORES.glob(f"{pattern}/meta.json"))


@cache
def _core(directory: Path) -> Core:
    """The same object for every test, because pytest groups tests by shared values."""
    return Core(directory)


def _one_of_each_series(found: List[Path]) -> List[Path]:
    """Choose one core of each series, for tests on changed dumps that depend little on the kernel."""
    chosen: Dict[Tuple[object, ...], Path] = {}
    for directory in sorted(found, key=lambda d: not _core(d).meta["kaslr"]):
        core = _core(directory)
        series = core.meta["release"].split(".")[:2]
        built = core.meta.get("oracle"), core.meta.get("variant")
        chosen.setdefault((core.architecture, *series, *built), directory)
    return sorted(chosen.values())


def pytest_make_parametrize_id(val: object, argname: str) -> Optional[str]:
    """Leave bytes out of the names of tests.

    Packed data can contain the time at which it was packed, but all workers of pytest-xdist must find the
    same names.
    """
    return argname if isinstance(val, bytes) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "core" in metafunc.fixturenames:
        which = metafunc.config.getoption("--cores")
        found = _found(which)
        if not found:
            raise pytest.UsageError(f"there are no {which} cores in vmcores/; run make vmcores")
        # Tests of a module without ARCHITECTURES are for x86-64.
        meant = getattr(metafunc.module, "ARCHITECTURES", ("amd64",))
        found = [d for d in found if _core(d).architecture in meant]
        # Slow tests for which the sample in the repository is enough.
        thorough = metafunc.config.getoption("--thorough")
        if which == "built" and not thorough:
            elsewhere = getattr(metafunc.module, "SHIPPED_ONLY", ())
            found = [d for d in found if _core(d).architecture not in elsewhere]
        few = getattr(metafunc.module, "ONE_OF_EACH_SERIES", ())
        if which != "shipped" and not thorough:
            chosen = _one_of_each_series(found)
            found = [d for d in found if d in chosen or _core(d).architecture not in few]
            # Slow tests for which one core is enough: the last one, with the newest kernel.
            for name in getattr(metafunc.module, "ONE_CORE", ()):
                others = [d for d in found if _core(d).architecture == name][:-1]
                found = [d for d in found if d not in others]
        # A worker keeps the core that it has opened (pytest-xdist, --dist loadgroup).
        each = [pytest.param(_core(d), id=d.name, marks=pytest.mark.xdist_group(d.name)) for d in found]
        metafunc.parametrize("core", each, scope="session")


class Tiers:
    """In CI, a tier in which no test ran fails the run, because something that it needs is missing."""

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
    """The core, opened without other files."""
    return _open(core.path)
