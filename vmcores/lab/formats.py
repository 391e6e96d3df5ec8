"""One guest dumped in every way that QEMU offers, for tests that expect the same of each file."""

import tempfile
import time
from pathlib import Path
from typing import Container, Dict, List, Optional, Tuple

from lab import boot, initramfs, qemu
from lab.matrix import Entry
from lab.packages import Kernel


def dump_all(
    entry: Entry, kernel: Kernel, target: Path, *, device: bool, only: Optional[Container[str]] = None
) -> Dict[str, Path]:
    """Boot an entry and dump it, stopped, in all formats.

    :param device: whether the guest has the vmcoreinfo device, by which dumps get their note.
    :param only: names of those that are wanted.
    :return: files in ``target``, by QEMU's names of the formats; and ``pmemsave``, the guest's physical
        addresses from 0 to the end of its memory; and ``backend``, the file that was the guest's memory.
    """
    return qemu.persistently(lambda: _dump_all(entry, kernel, target, device, only))


def _dump_all(
    entry: Entry, kernel: Kernel, target: Path, device: bool, only: Optional[Container[str]]
) -> Dict[str, Path]:
    target.mkdir(parents=True, exist_ok=True)
    found: Dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix="kvintro-", dir=target) as scratch:
        work = Path(scratch)
        options = _prepared(entry, kernel, work)
        if not device:
            at = options.index("vmcoreinfo")
            del options[at - 1 : at + 1]
        size = entry.memory_mb << 20
        options += ["-object", f"memory-backend-file,id=ram,size={size},mem-path=backend,share=on"]
        options += ["-machine", "pc,memory-backend=ram"]
        with qemu.Qemu(work, options) as guest:
            guest.wait_for(boot.READY, boot.BOOT_TIMEOUT)
            guest.stop_idle()
            # Which there are depends on how QEMU was built: Debian's has no lzo and no snappy.
            for name in guest.command("query-dump-guest-memory-capability")["formats"]:
                if name != "win-dmp" and (only is None or name in only):
                    guest.dump(name, name)
                    found[name] = work / name
            if only is None or "pmemsave" in only:
                end = 0x100000000 + size - _low(size) if size > _low(size) else size
                guest.command("pmemsave", {"val": 0, "size": end, "filename": "pmemsave"}, timeout=600)
                found["pmemsave"] = work / "pmemsave"
        # The guest was stopped before it ended, so its memory is as it was.
        found["backend"] = work / "backend"
        for name, path in found.items():
            path.replace(target / name)
            (target / name).chmod(0o644)
    return {name: target / name for name in found}


def dump_panicked(entry: Entry, kernel: Kernel, target: Path) -> Tuple[Path, str]:
    """Boot an entry whose command line has ``unknown_nmi_panic``, have it panic, and dump it.

    :return: the dump, ELF; and all that the guest printed.
    """

    def attempt() -> Tuple[Path, str]:
        with tempfile.TemporaryDirectory(prefix="kvintro-", dir=target) as scratch:
            work = Path(scratch)
            with qemu.Qemu(work, _prepared(entry, kernel, work)) as guest:
                guest.wait_for(boot.READY, boot.BOOT_TIMEOUT)
                guest.command("inject-nmi")
                for _ in range(100):
                    time.sleep(0.2)
                    if "end Kernel panic" in guest.console():
                        break
                else:
                    raise qemu.GuestDied("the guest did not panic")
                guest.command("stop")
                guest.dump("elf")
                (work / "elf").replace(target / "elf")
                return target / "elf", guest.console()

    return qemu.persistently(attempt)


def _prepared(entry: Entry, kernel: Kernel, work: Path) -> List[str]:
    """QEMU's options, for a guest in that directory."""
    (work / "kernel").symlink_to(kernel.image)
    ramdisk = initramfs.build("init", kernel.modules, boot.MODULES, ("workload", "probe"))
    (work / "initramfs").write_bytes(ramdisk)
    return [*boot.guest_options(entry), "-initrd", "initramfs"]


def _low(size: int) -> int:
    """How much of its memory a machine of type pc has below 4 GB (hw/i386/pc_piix.c:pc_init1)."""
    return 0xC0000000 if size >= 0xE0000000 else size
