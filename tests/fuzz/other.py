# SPDX-License-Identifier: LGPL-2.1-or-later
"""Damaged dumps of architectures whose page tables kvintro does not know."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from kvintro.errors import KvintroError
from tests.fuzz.damage import damaged
from tests.fuzz.harness import Target
from tests.fuzz.targets import check_inert, run_main
from tests.other_dumps import KERNELS, NOTE


class OtherArchitectures(Target):
    """ELF cores and kdumps for ppc64 and s390x, damaged mostly in headers and VMCOREINFO, or cut off."""

    name = "other architectures"
    cases = 600

    def prepare(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=self.scratch)) / "core"
        self._files = []
        for kernel in KERNELS.values():
            memory, note = kernel.memory(kernel.text()), kernel.text()
            self._files += [
                (kernel.elf(memory), 1000 + NOTE),
                (kernel.elf(memory, note), 0),
                (kernel.kdump(memory), 0),
                (kernel.kdump(memory, note), kernel.page),
            ]

    def run(self, chosen: random.Random) -> None:
        data, place = chosen.choice(self._files)
        if chosen.random() < 0.2:
            data = data[: chosen.randrange(len(data))]
        else:
            at = chosen.choice((0, place))
            data = data[:at] + damaged(chosen, data[at : at + 1200]) + data[at + 1200 :]
        self.path.write_bytes(data)
        form = chosen.choice(("text", "json"))
        more = chosen.choice(((), ("--bug-report",)))
        try:
            check_inert(run_main("-c", str(self.path), "--format", form, "info", *more), form)
        except KvintroError:
            pass
        try:
            run_main("-c", str(self.path), "layout")
        except KvintroError:
            return
        raise AssertionError("layout does not refuse the dump")
