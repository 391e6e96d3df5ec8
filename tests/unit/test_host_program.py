# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvintro as a library does not change the process of a program that uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent.parent / "vmcores" / "debian-6.12" / "core.kdump"

USE = f"""
import kvintro
k = kvintro.open({str(CORE)!r})
k.layout()
k.identify("init_task")
k.page(0x2c10)
"""


def _host(code: str) -> str:
    """Standard output of a separate program."""
    if not CORE.exists():
        pytest.skip("the sample dump is not there")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_of_the_process_changes() -> None:
    """Loggers, hooks, signals, the environment, the search path, standard streams."""
    found = _host(
        """
import drgn, gc, locale, logging, os, signal, sys, threading, warnings
def state():
    return {
        "levels": [logging.getLogger(name).level for name in ("", "drgn", "drgn.test")],
        "handlers": [list(logging.getLogger(name).handlers) for name in ("", "drgn")],
        "last resort": (logging.lastResort, logging.lastResort.formatter),
        "hooks": (sys.excepthook, sys.displayhook, sys.getprofile(), sys.gettrace(), threading.excepthook),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "search path": (list(sys.path), list(sys.meta_path)),
        "warnings": list(warnings.filters),
        "locale": locale.setlocale(locale.LC_ALL),
        "threads": threading.enumerate(),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "directory": os.getcwd(),
        "limits": sys.getrecursionlimit(),
        "ids": os.getresuid(),
    }
import numpy, tqdm  # these change things themselves
before = state()
"""
        + USE
        + """
after = state()
print(*(name for name in before if before[name] != after[name]))
"""
    )
    assert found == ""


@pytest.mark.parametrize("level", ["DEBUG", "WARNING", "CRITICAL"])
def test_the_level_of_drgn_s_logger_stays(level: str) -> None:
    code = f"import logging; logging.getLogger('drgn').setLevel({level!r}); logging.raiseExceptions = False"
    found = _host(f"{code}{USE}print(logging.getLevelName(logging.getLogger('drgn').level))")
    assert found == level


def test_a_profiler_goes_on() -> None:
    """A profiler that is a function, and cProfile, which is not a function before Python 3.12."""
    after = """
def called_afterwards(): pass
called_afterwards()
"""
    function = f"""
import sys
seen = []
def profile(frame, event, argument): seen.append(frame.f_code.co_name)
sys.setprofile(profile)
{USE}
{after}
sys.setprofile(None)
print("called_afterwards" in seen)
"""
    assert _host(function) == "True"
    own = f"""
import cProfile, pstats
profile = cProfile.Profile()
profile.enable()
{USE}
{after}
profile.disable()
print("called_afterwards" in [name for _, _, name in pstats.Stats(profile).stats])
"""
    assert _host(own) == "True"


def test_a_command_has_one_thread() -> None:
    """By the system. Unless it is told not to, OpenBLAS starts a thread for each processor."""
    program = f"""
import os, sys
from kvintro.cli import main
sys.argv[1:] = ["-c", {str(CORE)!r}, "-o", "/dev/null", "layout"]
main()
print("numpy" in sys.modules, len(os.listdir("/proc/self/task")))
"""
    assert _host(program) == "True 1"
