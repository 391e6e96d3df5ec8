"""A booted guest in which commands run as root, with kvintro's tree of this checkout in it."""

import io
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from lab import boot, initramfs, qemu, rootfs
from lab.common import GUEST, HERE, LabError
from lab.machine import Machine
from lab.matrix import Entry
from lab.packages import Archive, Kernel

#: What a root on a virtio disk takes; crc32c is asked for by ext4 without a dependency saying so.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4", "qemu_fw_cfg", "loop")
MEMORY_MB = 768
#: Nothing is dumped, so free pages may stay as they are.
WORDS = ("init_on_free=0",)
#: Parts of the checkout that go into the guest.
TREE = ("kvintro", "tests", "tools", "pyproject.toml")
KVINTRO = """#!/usr/bin/python3
import sys

from kvintro.cli import main

sys.exit(main())
"""


@dataclass(frozen=True)
class Result:
    """What one command said."""

    command: str
    code: int
    stdout: str
    stderr: str
    seconds: float


def _skip(info: tarfile.TarInfo) -> Optional[tarfile.TarInfo]:
    """Keep caches out of the guest."""
    name = info.name.rpartition("/")[2]
    return None if name == "__pycache__" or name.startswith(".") or name.endswith(".pyc") else info


def _bundle(commands: Sequence[str], extra: Optional[Dict[str, bytes]], machine: Machine) -> bytes:
    """The second disk: a tar archive with the tree, the programs and the commands."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, data: bytes, mode: int = 0o644) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))

        add("run", (GUEST / "live-run").read_bytes(), 0o755)
        for name in ("workload", "probe"):
            add(f"bin/{name}", initramfs.static_program(name, machine), 0o755)
        add("bin/kvintro", KVINTRO.encode(), 0o755)
        for number, command in enumerate(commands):
            add(f"commands/{number:04}", command.encode() + b"\n")
        for path, data in (extra or {}).items():
            add(path, data)
        for name in TREE:
            if (HERE.parent / name).exists():
                tar.add(HERE.parent / name, f"tree/{name}", filter=_skip)
    return stream.getvalue()


def run_live(
    entry: Entry,
    commands: Sequence[str],
    *,
    archive: Optional[Archive] = None,
    timeout: float = 900,
    memory_mb: int = MEMORY_MB,
    extra: Optional[Dict[str, bytes]] = None,
) -> List[Result]:
    """Boot an entry's kernel with a Debian root, run shell commands as root, return what they said.

    The commands run in /lab/tree, where this checkout's kvintro lies, with `kvintro` on the path and
    the lab's workload running; extra files appear below /lab. Nothing outlives the guest.
    """
    archive = archive or Archive(entry.machine)
    kernel = boot.find_kernel(entry, archive)
    root = rootfs.image(entry.machine)
    entry = replace(entry, memory_mb=memory_mb, extra=(*entry.extra, *WORDS))
    bundle = _bundle(commands, extra, entry.machine)
    files = qemu.persistently(lambda: _session(entry, kernel, root, bundle, timeout))
    results = []
    for number, command in enumerate(commands):
        name = f"{number:04}"
        if f"{name}.status" not in files:
            raise LabError(f"the guest did not say how this ended: {command}")
        code, start, end = files[f"{name}.status"].split()
        results.append(
            Result(
                command=command,
                code=int(code),
                stdout=files.get(f"{name}.out", b"").decode(errors="replace"),
                stderr=files.get(f"{name}.err", b"").decode(errors="replace"),
                seconds=float(end) - float(start),
            )
        )
    return results


def _session(entry: Entry, kernel: Kernel, root: Path, bundle: bytes, timeout: float) -> Dict[str, bytes]:
    """One guest from its boot to the end of the commands; what it sent."""
    with tempfile.TemporaryDirectory(prefix="kvintro-") as scratch:
        work = Path(scratch)
        (work / "kernel").symlink_to(kernel.image)
        (work / "root").symlink_to(root)
        if entry.efi:
            (work / "firmware").symlink_to(boot.firmware(entry.machine))
        boot.give_seed(entry, work)
        ramdisk = initramfs.build("live-init", kernel.modules, MODULES, (), machine=entry.machine)
        (work / "initramfs").write_bytes(ramdisk)
        (work / "bundle").write_bytes(bundle)
        disk = "format=raw,if=virtio,cache=unsafe,file="
        options = [*boot.guest_options(entry), "-initrd", "initramfs"]
        options += ["-drive", f"{disk}root,snapshot=on", "-drive", f"{disk}bundle,readonly=on"]
        with qemu.Qemu(work, options, entry.machine) as guest:
            guest.wait_for(boot.STARTED, boot.boot_timeout(entry))
            try:
                guest.wait_for(boot.READY, timeout)
            except qemu.NotReady as error:
                # A command may be what hangs, and would do so again.
                raise LabError(str(error)) from None
        return qemu.read_stream(work / "stream")
