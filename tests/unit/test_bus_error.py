# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file that becomes shorter while it is read: the command line never dies of a signal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Tuple

import pytest

from kvintro import prompt
from kvintro.errors import NotADump
from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.synthetic import elf_core, vmcoreinfo

CORE = Path(__file__).parents[2] / "vmcores/debian-6.12/core.kdump"
needs_core = pytest.mark.skipif(not CORE.exists(), reason="the sample dump is not there")

#: A script that runs the command line and cuts a file before the Nth call of a function.
CUT = """
import os, sys
from kvintro import cli
module, name, count, file = sys.argv[1:5]
owner = __import__(module, fromlist=["x"])
original = getattr(owner, name)
calls = []
def cut(*args, **more):
    calls.append(1)
    if len(calls) == int(count):
        os.truncate(file, 8192)
    return original(*args, **more)
setattr(owner, name, cut)
sys.exit(cli.main(sys.argv[5:]))
"""


def cut_during(when: str, count: int, file: Path, *arguments: str) -> Tuple[int, str]:
    """Exit status and standard error of a command during which a file is cut."""
    module, name = when.rsplit(".", 1)
    done = subprocess.run(
        [sys.executable, "-c", CUT, module, name, str(count), str(file), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return Path(shutil.copy(CORE, tmp_path / "dump"))


@needs_core
@pytest.mark.parametrize("how", ["-c", "diff A", "diff B", "diff, with -c"])
def test_a_kdump_that_shrinks(dump: Path, how: str) -> None:
    words = {
        "-c": ["-c", str(dump), "ptdump"],
        "diff A": ["diff", str(dump), str(CORE)],
        "diff B": ["diff", str(CORE), str(dump)],
        "diff, with -c": ["-c", str(CORE), "diff", str(dump)],
    }
    when = "kvintro.commands.ptdump.run" if how == "-c" else "kvintro.reports.diff.side_of_kernel"
    code, err = cut_during(when, 2 if how == "diff B" else 1, dump, *words[how])
    assert code == 3, (code, err)
    assert len(err.splitlines()) == 2
    assert "was truncated while it was read" in err or "has become shorter" in err


def test_the_signal_itself(tmp_path: Path) -> None:
    """A library reads a mapped file that is cut, like debuginfo that drgn maps."""
    program = """
        import ctypes, mmap, os, sys
        from kvintro.bus_error import end_on_bus_error
        if sys.argv[2] == "handled":
            end_on_bus_error()
        with open(sys.argv[1], "r+b") as file:
            place = mmap.mmap(file.fileno(), 8192)
            os.truncate(sys.argv[1], 100)
            ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(place, 4096)), 1)
    """
    path = tmp_path / "file"
    for how, expected in (("handled", 3), ("not", -signal.SIGBUS)):
        path.write_bytes(bytes(8192))
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(path), how],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == expected, done.stderr
        assert (len(done.stderr.splitlines()) == 2) == (how == "handled")


@pytest.mark.parametrize("kind", ["ELF", "kdump"])
def test_the_api_says_that_a_dump_shrank(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dump"
    if kind == "kdump":
        if not CORE.exists():
            pytest.skip("the sample dump is not there")
        shutil.copy(CORE, path)
    else:
        path.write_bytes(
            elf_core(
                [(0, 0, bytes(1 << 16))], [("VMCOREINFO", 0, vmcoreinfo().encode())], left_out={0: 64 << 20}
            )
        )
    before = signal.getsignal(signal.SIGBUS)
    kernel = prompt.Kernel(open_kernel(Request(core=str(path))).source)
    os.truncate(path, 4096)
    with pytest.raises(NotADump) as caught:
        kernel.layout()
    assert "has become shorter" in caught.value.what
    assert signal.getsignal(signal.SIGBUS) == before


@needs_core
def test_the_api_installs_no_handler() -> None:
    """According to the kernel's data about the process, not Python's."""
    program = f"""
        from kvintro import kernel
        kernel({str(CORE)!r}).layout()
        with open("/proc/self/status") as file:
            masks = [line.split()[1] for line in file if line.startswith(("SigCgt", "SigIgn"))]
        print([int(mask, 16) >> 6 & 1 for mask in masks])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[0, 0]"
