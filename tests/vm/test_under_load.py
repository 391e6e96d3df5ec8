# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvintro as root in guests under load, each answer against that guest's own data.

Some guests run a few commands each. KVINTRO_LIVE_RUNS=N runs N in every guest; KVINTRO_LIVE_SEED=S chooses
different ones; KVINTRO_LIVE_RECORD=FILE appends the results to a file, from which tools/gen_live.py makes the
table in docs/live.md.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from tests.vm.guests import BUSY, ENTRIES, RUNS, needs_lab, run

FEW = 6
SEED = int(os.environ.get("KVINTRO_LIVE_SEED", "0"))
RECORD = os.environ.get("KVINTRO_LIVE_RECORD")
#: Modules that the load loads and unloads; nothing else uses them.
LOADED = ("dummy", "nbd", "crc7")


def _module_files(entry: Any) -> Dict[str, bytes]:
    from lab import boot
    from lab.packages import Archive

    directory = boot.find_kernel(entry, Archive()).modules
    found = {}
    for name in LOADED:
        for path in sorted(Path(str(directory)).rglob(f"{name}.ko")):
            found[f"modules/{name}.ko"] = path.read_bytes()
    return found


@needs_lab
@pytest.mark.parametrize("entry", BUSY, ids=lambda entry: entry.name)
def test_inside_under_load(entry: Any) -> None:
    modules = _module_files(entry)
    files = " ".join(f"/lab/{name}" for name in modules)
    # Each guest has its own share of the commands.
    seed = f"{SEED}{ENTRIES.index(entry)}"
    started = time.monotonic()
    (result,) = run(
        entry, f"python3 -m tests.vm.inside.check {RUNS or FEW} {seed} {files}", extra=modules, busy=RUNS
    )
    assert result.code == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    found.update(
        entry=entry.name,
        levels=entry.levels,
        pti=entry.pti,
        date=time.strftime("%Y-%m-%d"),
        total_seconds=round(time.monotonic() - started),
        wrong_count=len(found["wrong"]),
    )
    if RECORD:
        with open(RECORD, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    shown = (
        "entry",
        "release",
        "compared",
        "commands",
        "runs",
        "partial",
        "refused",
        "seconds",
        "total_seconds",
    )
    print(
        json.dumps({key: found[key] for key in shown}),
        json.dumps([found["why"], found["findings"]], indent=1),
    )
    said = found["kernel"]
    assert (said["paging_levels"], said["pti"], said["live"]) == (entry.levels, entry.pti, True)
    assert not found["wrong"], "\n".join(found["wrong"][:10])
    assert found["compared"] > 150
    assert found["runs"] == (RUNS or FEW)
    # A report may be partial now and then, but must never be refused.
    assert found["partial"] <= max(2, found["runs"] // 10), found["why"]
    assert not found["refused"], found["why"]
