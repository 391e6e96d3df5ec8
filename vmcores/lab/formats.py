"""One guest dumped in every way that QEMU offers, for tests that expect the same of each file."""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Callable, Container, Dict, List, Optional, Sequence, Tuple

from lab import boot, initramfs, qemu, rootfs
from lab.common import LabError, need, run, until
from lab.matrix import Entry
from lab.packages import Kernel

#: Dumps a guest by its monitor into a directory; the files by their names.
Meanwhile = Callable[[Path, Path], Dict[str, Path]]


def dump_all(
    entry: Entry,
    kernel: Kernel,
    target: Path,
    *,
    device: bool,
    only: Optional[Container[str]] = None,
    meanwhile: Optional[Meanwhile] = None,
) -> Dict[str, Path]:
    """Boot an entry and dump it, stopped, in all formats.

    :param device: whether the guest has the vmcoreinfo device, by which dumps get their note.
    :param only: names of those that are wanted.
    :param meanwhile: dumps the stopped guest, too.
    :return: files in ``target``, by QEMU's names of the formats; and ``pmemsave``, the guest's physical
        addresses from 0 to the end of its memory; and ``backend``, the file that was the guest's memory.
    """
    return qemu.persistently(lambda: _dump_all(entry, kernel, target, device, only, meanwhile))


def _dump_all(
    entry: Entry,
    kernel: Kernel,
    target: Path,
    device: bool,
    only: Optional[Container[str]],
    meanwhile: Optional[Meanwhile],
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
        options += ["-machine", "pc,memory-backend=ram", "-qmp", "unix:second,server=on,wait=off"]
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
            if meanwhile is not None:
                found.update(meanwhile(work / "second", work))
        # The guest was stopped before it ended, so its memory is as it was.
        found["backend"] = work / "backend"
        for name, path in found.items():
            path.replace(target / name)
            (target / name).chmod(0o644)
    return {name: target / name for name in found}


#: How a guest is saved: stopped, its pages packed with zlib (QEMU until 9.0), or while it runs.
STREAMS = ("plain", "compress", "live")
#: Bytes in a second; the first is little enough that the guest changes pages while they are sent.
_SLOWLY, _QUICKLY = 16 << 20, 1 << 33


def save_all(
    entry: Entry, kernel: Kernel, target: Path, *, machine: str, backend: str = "", stream: str = "plain"
) -> Dict[str, Path]:
    """Boot an entry and save it: a migration stream, and a snapshot in a qcow2 disk.

    With ``live`` the guest runs while it is saved, so that its pages come again; there is no snapshot, and
    the other files are of a guest that QEMU started from the stream.

    :param machine: QEMU's machine type with its options.
    :param backend: the name of the guest's block of memory, if it is not to be QEMU's own.
    :param stream: one of :data:`STREAMS`.
    :return: files in ``target``: ``stream``, ``disk`` with the snapshot ``one``, ``elf``, and ``ram``, the
        guest's RAM at its physical addresses, by pmemsave.
    """
    return qemu.persistently(lambda: _save_all(entry, kernel, target, machine, backend, stream))


def _save_all(
    entry: Entry, kernel: Kernel, target: Path, machine: str, backend: str, stream: str
) -> Dict[str, Path]:
    target.mkdir(parents=True, exist_ok=True)
    names = ["migrated", "elf", "ram"]
    with tempfile.TemporaryDirectory(prefix="kvintro-", dir=target) as scratch:
        work = Path(scratch)
        options = _prepared(entry, kernel, work)
        if backend:
            size = entry.memory_mb << 20
            options += ["-object", f"memory-backend-ram,id={backend},size={size}"]
            machine += f",memory-backend={backend}"
        options += ["-machine", machine]
        need({"qemu-img": "qemu-utils"})
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(work / "disk"), "1G"])
        options += ["-drive", "file=disk,format=qcow2,if=none,id=disk"]
        with qemu.Qemu(work, options) as guest:
            guest.wait_for(boot.READY, boot.BOOT_TIMEOUT)
            if stream != "live":
                guest.stop_idle()
                refused = guest.monitor("savevm one")
                if refused:
                    raise LabError(f"QEMU did not save a snapshot: {refused}")
                names.append("disk")
            _migrate(guest, stream)
            if stream != "live":
                _dump(guest, work, backend or "pc.ram")
        if stream == "live":
            # Under emulation QEMU misses some of what a running guest writes while it is saved. What counts
            # is what QEMU itself makes of the stream.
            (work / "qmp").unlink()
            with qemu.Qemu(work, [*options, "-S", "-incoming", "exec:cat migrated"]) as guest:
                _await_loaded(guest)
                _dump(guest, work, backend or "pc.ram")
        for name in names:
            (work / name).replace(target / name)
            (target / name).chmod(0o644)
    return {"stream" if name == "migrated" else name: target / name for name in names}


#: Streams of a guest that is stopped, which QEMU writes since version 9: their capabilities.
NEWER_STREAMS: Dict[str, Tuple[str, ...]] = {
    "plain": (),
    "mapped-ram": ("mapped-ram",),
    "mapped-ram-multifd": ("mapped-ram", "multifd"),
}


def save_by_newer(entry: Entry, kernel: Kernel, target: Path, *, machine: str) -> Dict[str, Path]:
    """Boot an entry in a newer QEMU, and save it while it runs, with XBZRLE; then start it from that stream,
    stopped, dump it, and save it in the other ways.

    :param machine: QEMU's machine type with its options.
    :return: files in ``target``: ``live``, those of :data:`NEWER_STREAMS`, ``elf`` and ``ram``.
    """
    newer = dataclasses.replace(entry.machine, qemu=str(rootfs.newer_qemu()))

    def attempt() -> Dict[str, Path]:
        with tempfile.TemporaryDirectory(prefix="kvintro-", dir=target) as scratch:
            work = Path(scratch)
            options = [*_prepared(entry, kernel, work), "-machine", machine]
            with qemu.Qemu(work, options, newer) as guest:
                guest.wait_for(boot.READY, boot.BOOT_TIMEOUT)
                _migrate_to(guest, "live", ("xbzrle",), _SLOWLY)
            source = "live"
            for name, capabilities in NEWER_STREAMS.items():
                (work / "qmp").unlink()
                with qemu.Qemu(work, [*options, "-S", "-incoming", f"file:{source}"], newer) as guest:
                    _await_loaded(guest)
                    if name == "plain":
                        _dump(guest, work, "pc.ram")
                    _migrate_to(guest, name, capabilities, _QUICKLY)
                source = "plain"
            names = ["live", *NEWER_STREAMS, "elf", "ram"]
            for name in names:
                (work / name).replace(target / name)
                (target / name).chmod(0o644)
        return {name: target / name for name in names}

    return qemu.persistently(attempt)


def _dump(guest: qemu.Qemu, work: Path, block: str) -> None:
    """Write the files ``elf`` and ``ram`` of a guest that is stopped."""
    guest.dump("elf")
    with (work / "ram").open("wb") as file:
        for first, last in _ram(guest, block):
            arguments = {"val": first, "size": last - first + 1, "filename": "part"}
            guest.command("pmemsave", arguments, timeout=600)
            file.seek(first)
            file.write((work / "part").read_bytes())


def _await_loaded(guest: qemu.Qemu) -> None:
    """Wait until a guest that is started from a stream has all of it."""
    for _ in until(boot.BOOT_TIMEOUT):
        if guest.command("query-status")["status"] != "inmigrate":
            return
    raise LabError("QEMU did not load the stream that it saved")


def _migrate(guest: qemu.Qemu, stream: str) -> None:
    """Send the guest into the file ``migrated``; it is stopped afterwards."""
    speed = _SLOWLY if stream == "live" else _QUICKLY
    capabilities = (stream,) if stream == "compress" else ()
    _migrate_to(guest, "migrated", capabilities, speed, uri="exec:cat >migrated")


def _migrate_to(
    guest: qemu.Qemu, name: str, capabilities: Sequence[str], speed: int, *, uri: str = ""
) -> None:
    """Send the guest into a file.

    :param uri: where to, for versions of QEMU that cannot write files themselves.
    """
    guest.command("migrate-set-parameters", {"max-bandwidth": speed, "downtime-limit": 50})
    if capabilities:
        states = [{"capability": capability, "state": True} for capability in capabilities]
        guest.command("migrate-set-capabilities", {"capabilities": states})
    guest.command("migrate", {"uri": uri or f"file:{name}"})
    for _ in until(boot.BOOT_TIMEOUT):
        status = guest.command("query-migrate").get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            break
    raise LabError(f"QEMU did not save its guest: {guest.command('query-migrate')}")


def _ram(guest: qemu.Qemu, block: str) -> List[Tuple[int, int]]:
    """First and last physical addresses of a block of memory."""
    line = rf"^ *([0-9a-f]{{16}})-([0-9a-f]{{16}}) \(prio -?\d+, ram\): {re.escape(block)}\b"
    found = re.findall(line, guest.monitor("info mtree -f"), re.MULTILINE)
    return sorted({(int(first, 16), int(last, 16)) for first, last in found})


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
                for _ in until(boot.BOOT_TIMEOUT):
                    if "end Kernel panic" in guest.console():
                        break
                else:
                    raise qemu.GuestDied("the guest did not panic")
                guest.command("stop")
                guest.dump("elf")
                (work / "elf").replace(target / "elf")
                return target / "elf", guest.console()

    return qemu.persistently(attempt)


def dump_crashed(entry: Entry, kernel: Kernel, target: Path) -> Dict[str, Path]:
    """Boot an entry whose command line has ``crashkernel=``, have it crash and boot the same kernel as its
    crash kernel, and dump the memory of both.

    :return: ELF and raw memory, files in ``target`` by those names.
    """

    def attempt() -> Dict[str, Path]:
        with tempfile.TemporaryDirectory(prefix="kvintro-", dir=target) as scratch:
            work = Path(scratch)
            (work / "kernel").symlink_to(kernel.image)
            crash = initramfs.build("crash-init", None, (), ())
            files = {"kernel": kernel.image.read_bytes(), "crash-initramfs": crash}
            ramdisk = initramfs.build("crash-init", kernel.modules, ("qemu_fw_cfg",), ("crash",), files)
            (work / "initramfs").write_bytes(ramdisk)
            options = [*boot.guest_options(entry), "-initrd", "initramfs"]
            with qemu.Qemu(work, options) as guest:
                console = ""
                for _ in until(2 * boot.BOOT_TIMEOUT):
                    console = guest.console()
                    if "KVINTRO-CRASHED" in console or "KVINTRO-FAILED" in console or not guest.running:
                        break
                if "KVINTRO-CRASHED" not in console or "KVINTRO-FAILED" in console:
                    raise qemu.GuestDied(f"the crash kernel did not boot: {console.splitlines()[-1:]}")
                guest.command("stop")
                guest.dump("elf")
                size = entry.memory_mb << 20
                guest.command("pmemsave", {"val": 0, "size": size, "filename": "raw"}, timeout=600)
                for name in ("elf", "raw"):
                    (work / name).replace(target / name)
        return {name: target / name for name in ("elf", "raw")}

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
