# SPDX-License-Identifier: LGPL-2.1-or-later
"""A few seconds of coverage-guided fuzzing of each target, the same inputs in every run.

``make fuzz`` runs a target for longer. KVINTRO_FUZZ=N runs N times as many inputs, KVINTRO_FUZZ_SEED=N
different ones.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.guided import TARGETS
from tests.fuzz.test_fuzz import SEED, TIMES

RUNS = 400
ROOT = Path(__file__).resolve().parents[2]


_BROKEN = """
import atheris
from tests.fuzz import guided

class Broken(guided.Target):
    def seeds(self):
        return [b"x"]

    @atheris.instrument_func
    def run(self, data):
        if data[:1] == b"B" and data[1:2] == b"U" and data[2:3] == b"G":
            raise ZeroDivisionError

guided.TARGETS["broken"] = Broken
guided.main()
"""


def guided(place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in an empty directory."""
    pytest.importorskip("atheris", reason="atheris is not installed; it has wheels only for some systems")
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_guided(name: str, tmp_path: Path) -> None:
    # libFuzzer takes seed 0 for a random one.
    options = (f"-runs={RUNS * TIMES}", f"-seed={SEED + 1}")
    run = guided(tmp_path, "-m", "tests.fuzz.guided", name, "inputs", *options)
    assert run.returncode == 0, run.stdout[-4000:]
    done = re.search(r"#(\d+)\s+DONE\s+cov: (\d+)", run.stdout)
    assert done, run.stdout[-4000:]
    print(f"guided, {name}: {done[1]} inputs reached {done[2]} branches")
    assert int(done[2]) > 100, "kvintro is instrumented"


def test_it_finds_what_chance_does_not(tmp_path: Path) -> None:
    """Three bytes in a row, found one after the other; the input is kept."""
    run = guided(tmp_path, "-c", _BROKEN, "broken", "inputs", "-runs=200000", "-seed=1")
    assert run.returncode != 0
    assert "ZeroDivisionError" in run.stdout
    assert [path.read_bytes()[:3] for path in tmp_path.glob("crash-*")] == [b"BUG"]
