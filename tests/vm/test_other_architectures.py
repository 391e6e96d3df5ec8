# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``info`` shows of dumps of ppc64le and s390x, against what the kernels print about themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import pytest

from kvintro.cli import main
from tests.conftest import VMCORES

sys.path.insert(0, str(VMCORES))

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("apt-get") is None or not (VMCORES / "lab").exists(),
    reason="booting foreign guests needs root, apt-get and the lab in vmcores/",
)
SUITE = "bookworm"
_AT_PAGESZ = 6


class Guest(NamedTuple):
    """How to boot Debian's kernel of an architecture.

    :ivar order: its byte order, as a character for :mod:`struct`.
    :ivar formats: formats in which QEMU writes usable dumps.
    """

    architecture: str
    qemu: str
    package: str
    console: str
    flavour: str
    options: Tuple[str, ...]
    order: str
    formats: Tuple[str, ...]


GUESTS = (
    Guest(
        *("s390x", "qemu-system-s390x", "qemu-system-misc", "ttyS0", "s390x"),
        *(("-cpu", "max", "-m", "256"), ">", ("elf", "kdump-zlib")),
    ),
    Guest(
        *("ppc64el", "qemu-system-ppc64", "qemu-system-ppc", "hvc0", "powerpc64le"),
        *(("-M", "pseries", "-cpu", "power8", "-m", "512"), "<", ("elf",)),
    ),
)


def boot(guest: Guest, directory: Path) -> Dict[str, List[str]]:
    """Boot a guest and dump it to files named after the formats; return what it printed."""
    from lab.common import GUEST, need
    from lab.initramfs import Cpio
    from lab.machine import ARM64
    from lab.packages import Archive
    from lab.qemu import Qemu

    need({guest.qemu: guest.package})
    machine = replace(ARM64, name=guest.architecture, qemu=guest.qemu, channel=())
    archive, unpacked = Archive(machine, SUITE), directory / "kernel"
    unpacked.mkdir()
    for pattern in (rf"linux-image-6\.1\.\d+-\d+-{guest.flavour}", "busybox-static"):
        archive.unpack(archive.matching(pattern)[0], unpacked)
    (image,) = unpacked.glob("boot/vmlinu*")
    cpio = Cpio()
    cpio.character_device("dev/console", 5, 1)
    cpio.file("init", (GUEST / "other-init").read_bytes(), executable=True)
    cpio.file("bin/busybox", (unpacked / "bin" / "busybox").read_bytes(), executable=True)
    cpio.link("bin/sh", "busybox")
    (directory / "initrd").write_bytes(cpio.compressed())
    boot = ("-kernel", str(image), "-initrd", "initrd", "-append", f"console={guest.console} panic=-1 quiet")
    with Qemu(directory, [*guest.options, *boot], machine) as qemu:
        qemu.wait_for("KVINTRO-READY", 900)
        qemu.command("stop")
        for form in guest.formats:
            qemu.dump(form, form)
        said: Dict[str, List[str]] = {}
        for key, value in re.findall(r"^KVINTRO-(\w+) (.*?)\s*$", qemu.console(), re.MULTILINE):
            said.setdefault(key, []).append(value)
        return said


def facts_of(path: Path, capsys: pytest.CaptureFixture[str]) -> Dict[str, Any]:
    """What ``info`` shows."""
    assert main(["-c", str(path), "info", "--json"]) == 0
    return {fact["key"]: fact["value"] for fact in json.loads(capsys.readouterr().out)["facts"]}


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.architecture)
def test_what_info_shows(
    guest: Guest, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not request.config.getoption("--thorough"):
        pytest.skip("a guest of another architecture takes minutes: --thorough")
    said = boot(guest, tmp_path)
    capsys.readouterr()
    build_id = re.search(rb"GNU\0(.{20})", bytes.fromhex(said["NOTES"][0]), re.DOTALL)
    assert build_id is not None
    auxiliary = dict(struct.iter_unpack(f"{guest.order}QQ", bytes.fromhex(said["AUXV"][0])))
    ranges = [tuple(int(number, 16) for number in line.split("-")) for line in said["RAM"]]
    for form in guest.formats:
        found = facts_of(tmp_path / form, capsys)
        assert found["release"] == said["RELEASE"][0]
        assert found["arch"] == said["MACHINE"][0]
        assert found["build_id"] == build_id[1].hex()
        assert found["page_size"] == auxiliary[_AT_PAGESZ]
        assert found["byte_order"] == {"<": "little-endian", ">": "big-endian"}[guest.order]
        assert found["ranges"] == ", ".join(f"{first:x}-{last:x}" for first, last in ranges)
        assert found["complete"] is True
        place = int(said["VMCOREINFO"][0].split()[0], 16)
        assert found["vmcoreinfo"] == f"found in memory at physical {place:#x}"
        assert main(["-c", str(tmp_path / form), "layout"]) == 3
        assert "does not know the page tables" in capsys.readouterr().err
