# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's guests in which the tests of live kernels run kvintro."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any, Dict, List

import pytest

from tests.conftest import VMCORES

sys.path.insert(0, str(VMCORES))

#: Number of command runs in each guest, after each command has run once and been compared; 0: a few, in some
#: guests.
RUNS = int(os.environ.get("KVINTRO_LIVE_RUNS", "0"))
#: A dump of an earlier boot, and its truth.
EARLIER = VMCORES / "debian-6.12"

_HAS_LAB = os.geteuid() == 0 and bool(shutil.which("qemu-system-x86_64")) and (VMCORES / "lab").exists()
needs_lab = pytest.mark.skipif(
    not _HAS_LAB,
    reason="booting guests needs root, QEMU and the lab in vmcores/",
)


def _entries() -> List[Any]:
    """Each series, 4 and 5 levels, with and without page-table isolation; by name for the test's id.

    Without the lab there are none, and their tests are skipped. If the lab is there but the package archive
    cannot be read or lacks a kernel, collecting the tests fails.
    """
    if not _HAS_LAB:
        return []
    from lab import matrix
    from lab.packages import Archive

    rows = {row.name: row for row in matrix.entries(Archive().newest_series(matrix.NEWEST_MAJOR))}
    wanted = ["6.1-4level-kaslr", "6.12-4level-kaslr", "6.12-5level-kaslr", "6.12-4level-kaslr-nopti"]
    chosen = [rows[f"debian-{name}"] for name in wanted]
    newest = [row for row in rows.values() if row.series not in ("6.1", "6.12", "5.10")]
    newest = [row for row in newest if row.kaslr and not row.furnished]
    return [*chosen, *newest, *[row for name, row in rows.items() if name == "oracle-6.12-4level"]]


ENTRIES = _entries()
#: The oldest kernel, whose data differs most from the newest one's. A guest takes about five minutes.
BUSY = [entry for entry in ENTRIES if RUNS or entry.series == "6.1"]


def _repeats(entry: Any) -> bool:
    """Whether other guests cover the same: another one has 6.12 with 4 levels, and the newest kernel 5."""
    return bool(
        entry.kaslr and entry.pti and not entry.extra and (entry.series == "6.12") is (entry.levels == 5)
    )


#: Guests whose layout is compared without load.
QUIET = [entry for entry in ENTRIES if entry not in BUSY and not _repeats(entry)]


def run(entry: Any, *commands: str, extra: "Dict[str, bytes] | None" = None, busy: int = 0) -> Any:
    """Run commands in a guest, with a time limit for this number of runs under load."""
    from lab import live

    return live.run_live(entry, commands, timeout=3600 + 30 * busy, extra=extra or {})
