# SPDX-License-Identifier: LGPL-2.1-or-later
"""Booted guests of arm64 and riscv64: kvintro inside them as root, and from outside over QMP.

Python takes minutes there, because the processor is emulated.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict

import pytest

from kvintro import prompt
from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.conftest import VMCORES

sys.path.insert(0, str(VMCORES))

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (VMCORES / "lab").exists(),
    reason="booting guests needs root and the lab in vmcores/",
)


@pytest.fixture(params=["arm64-6.12-max", "riscv64-6.12-sv39"])
def entry(request: pytest.FixtureRequest) -> Any:
    """A row of each architecture."""
    if not request.config.getoption("--thorough"):
        pytest.skip("a guest of another architecture takes ten minutes: --thorough")
    from lab import matrix

    rows = [*matrix.arm64_entries(""), *matrix.riscv64_entries("")]
    (found,) = (row for row in rows if row.name == request.param)
    if shutil.which(found.machine.qemu) is None:
        pytest.skip(f"{found.machine.qemu} is missing")
    return found


def test_inside(entry: Any) -> None:
    """Every command on /proc/kcore, with Debian's own package of drgn; see tests/vm/inside/foreign.py."""
    from lab import live

    (result,) = live.run_live(entry, ["python3 -m tests.vm.inside.foreign"], timeout=3600)
    assert result.code == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    print(json.dumps({key: found[key] for key in ("kernel", "commands", "partial", "times")}))
    assert not found["wrong"], "\n".join(found["wrong"][:10])
    said = found["kernel"]
    assert (said["arch"], said["live"]) == (entry.machine.uname, True)
    # Every area of vmalloc and every process of the workload was compared.
    compared = {name.partition(":")[0] for name in found["compared"]}
    assert compared >= {"layout", "translate", "show modules", "show vmalloc", "pages"}
    assert sum(found["compared"].values()) > 150
    assert found["commands"] > 25


def test_outside(entry: Any) -> None:
    """Over QMP, while the guest runs, compared with the guest's own data."""
    from lab import boot, initramfs, qemu
    from lab.packages import Archive

    kernel = boot.find_kernel(entry, Archive(entry.machine))

    def attempt() -> Dict[str, bytes]:
        with tempfile.TemporaryDirectory(prefix="kvintro-") as scratch:
            work = Path(scratch)
            (work / "kernel").symlink_to(kernel.image)
            ramdisk = initramfs.build(
                "init", kernel.modules, boot.MODULES, ("workload", "probe"), machine=entry.machine
            )
            (work / "initramfs").write_bytes(ramdisk)
            second = ["-qmp", "unix:second,server=on,wait=off"]
            options = [*boot.guest_options(entry), "-initrd", "initramfs", *second]
            with qemu.Qemu(work, options, entry.machine) as guest:
                guest.wait_for(boot.READY, boot.FOREIGN_BOOT_TIMEOUT)
                truth: Dict[str, bytes] = qemu.read_stream(work / "stream")
                look_from_outside(str(work / "second"), truth)
                return truth

    qemu.persistently(attempt)


def look_from_outside(address: str, truth: Dict[str, bytes]) -> None:
    """Bounds, symbols, areas and processes."""
    k = prompt.Kernel(open_kernel(Request(qemu=address)).source)
    layout = k.layout()
    assert layout.kernel is not None and layout.kernel.live
    assert layout.kernel.release == truth["release"].decode().strip()
    assert not layout.partial, layout.notes
    loads = [line.split() for line in truth["kcore-phdrs"].decode().splitlines()]
    starts = {int(words[2], 16) for words in loads if words and words[0] == "LOAD"}
    rows = {row.key: row for row in layout}
    assert rows["vmalloc"].start in starts
    lines = [line.split() for line in gzip.decompress(truth["kallsyms.gz"]).decode().splitlines()]
    symbols = {words[2]: int(words[0], 16) for words in lines if len(words) == 3}
    # On riscv64, the code that initialises the kernel is below _text.
    assert rows["kernel_image"].start == symbols.get("_start", symbols["_text"])
    task = k.translate("init_task")
    assert (task.state, task.virtual) == ("mapped", symbols["init_task"])
    said = re.findall(r"^0x([0-9a-f]+)-0x([0-9a-f]+)", truth["vmallocinfo"].decode(), re.M)
    rows_of_areas = k.run("show", "vmalloc", table="areas").json()["areas"]
    areas = {(int(area["start"], 16), int(area["end"], 16) + 1) for area in rows_of_areas}
    # Kernel threads start and end, with their stacks.
    missing = {(int(start, 16), int(end, 16)) for start, end in said} - areas
    assert len(missing) < len(said) // 20
    for name in ("ptdump", "pages"):
        assert k.run(name).json()
