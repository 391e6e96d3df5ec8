"""One entry of the matrix, from a kernel to a directory with its dump and its truth."""

import gzip
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Container, Dict, Iterator, List, Optional, Set, Tuple

from lab import disks, initramfs, kdump, kernel_source, qemu, tables
from lab.common import LabError, cache_dir, fresh_dir, run, say
from lab.machine import ARM64, RISCV64, Machine
from lab.matrix import Entry
from lab.packages import Archive, Kernel

READY = "KVINTRO-READY"
#: A live guest prints this before its first command.
STARTED = "KVINTRO-STARTED"
#: More than ten times as long as the slowest boot of a row, as a busy host is slower.
BOOT_TIMEOUT = 600.0
#: Another architecture is slower to emulate, most of all on a busy host.
FOREIGN_BOOT_TIMEOUT = 1200.0
#: A guest that fills gigabytes first (guest/busy.c).
BUSY_BOOT_TIMEOUT = 3600.0
#: qemu_fw_cfg hands the vmcoreinfo note to QEMU; the rest makes /proc/modules worth reading.
MODULES = ("qemu_fw_cfg", "loop", "fuse", "crc7", "dummy", "tun", "nbd", "binfmt_misc", "virtio_blk")
#: What a furnished guest needs besides its file system; that asks for crc32c without saying so.
DISK_MODULES = ("virtio_pci", "crc32c_generic", "crc32c_intel")
#: Drivers of what a guest with rare memory has.
RARE_MODULES = ("nd_e820", "nd_pmem", "virtio_pci", "virtio_balloon")
BALLOON_MB = 16
#: How many pages guest/rare.c asks to break.
BROKEN_PAGES = 2
#: Files with something of every page.
GZIPPED = ("kpageflags", "kpagecount", "kpagecgroup", "page_owner")
PAGE = 4096
#: Always the same one, so that a row has the same layout whenever it is built.
KASLR_SEED = ("6b76696e", "74726f31")
#: Symbols that a sampled kallsyms keeps in any case, and how many others.
LANDMARKS = (
    *("_text", "_stext", "_etext", "_sdata", "_edata", "_end", "__bss_start", "__bss_stop"),
    *("__start_rodata", "__end_rodata", "__end_rodata_aligned", "__init_begin", "__init_end"),
    *("__brk_base", "__brk_limit", "__entry_text_start", "__entry_text_end", "init_top_pgt"),
    *("level1_fixmap_pgt", "page_offset_base", "vmalloc_base", "vmemmap_base", "phys_base"),
    *("physical_mask", "high_memory", "max_pfn", "efi_mm", "init_mm", "init_task", "espfix_stack"),
    *("vsyscall_mode", "physmem_end", "direct_map_physmem_end", "pgdir_shift", "mem_section"),
    *("_start", "swapper_pg_dir", "reserved_pg_dir", "tramp_pg_dir", "idmap_pg_dir", "init_pg_dir"),
    *("memstart_addr", "kimage_voffset", "vectors", "tramp_vectors", "arm64_use_ng_mappings"),
)
SAMPLED_SYMBOLS = 600


def find_kernel(entry: Entry, archive: Archive) -> Kernel:
    """The kernel an entry boots: downloaded, or built from source the first time."""
    if entry.oracle:
        return kernel_source.oracle(entry.series, archive, entry.variant)
    return archive.kernel(entry.series, entry.flavour)


def boot_timeout(entry: Entry) -> float:
    """Seconds after which a guest that is not ready is given up."""
    if entry.busy:
        return BUSY_BOOT_TIMEOUT
    return FOREIGN_BOOT_TIMEOUT if entry.machine.foreign else BOOT_TIMEOUT


def firmware(machine: Machine) -> Path:
    """The UEFI firmware that QEMU runs for EFI entries."""
    for name in machine.firmware:
        if Path(name).exists():
            return Path(name)
    raise LabError(f"there is no UEFI firmware: apt-get install {machine.firmware_package}")


def guest_options(entry: Entry) -> List[str]:
    """QEMU's options for an entry, relative to the directory the guest runs in."""
    options = ["-cpu", entry.cpu, "-smp", "2", "-m", str(entry.memory_mb)]
    options += ["-kernel", "kernel", "-append", entry.cmdline]
    if entry.arch == RISCV64.name:
        return [*options, "-machine", "virt", *(["-dtb", "device-tree"] if entry.kaslr else [])]
    options += ["-device", "vmcoreinfo"]
    if entry.arch == ARM64.name:
        # The emulator has memory tags for the one CPU that knows of them.
        tags = ",mte=on" if entry.cpu.startswith("max") else ""
        options += ["-machine", f"virt,gic-version=3{tags}"]
        options += ["-device", "virtio-rng-pci"] if entry.efi and entry.rng else []
    if entry.furnished:
        for node in range(2):
            options += ["-object", f"memory-backend-ram,id=ram{node},size={entry.memory_mb // 2}M"]
            options += ["-numa", f"node,nodeid={node},memdev=ram{node}"]
            options += ["-numa", f"cpu,node-id={node},socket-id={node}"]
        options[options.index("-smp") + 1] = "2,sockets=2"
    if entry.rare:
        options[options.index("-m") + 1] += "M,slots=2,maxmem=1G"
        for name in ("plug0", "plug1"):
            options += ["-object", f"memory-backend-ram,id={name},size=128M"]
            options += ["-device", f"pc-dimm,id=dimm-{name},memdev={name}"]
        options += ["-device", "virtio-balloon-pci"]
    return options + (["-bios", "firmware"] if entry.efi else [])


def give_seed(entry: Entry, work: Path) -> None:
    """Write QEMU's own device tree, with the random number for KASLR that this QEMU does not put there.

    Does nothing for other architectures and without KASLR.
    """
    if entry.arch != RISCV64.name or not entry.kaslr:
        return
    machine = ["-machine", f"virt,dumpdtb={work / 'device-tree'}"]
    cpu = ["-cpu", entry.cpu, "-smp", "2", "-m", str(entry.memory_mb), "-nodefaults", "-display", "none"]
    run([entry.machine.qemu, *machine, *cpu])
    run(["fdtput", "-t", "x", str(work / "device-tree"), "/chosen", "kaslr-seed", *KASLR_SEED])


def _disks(entry: Entry) -> List[str]:
    """QEMU's options for the disks that :func:`_ramdisk` makes."""
    names = ("swap", "filesystem") if entry.furnished else ("swap",) if entry.machine.foreign else ()
    drives = [["-drive", f"format=raw,if=virtio,cache=unsafe,file={name}"] for name in names]
    return [word for drive in drives for word in drive]


def build(entry: Entry, archive: Archive, target: Path, small: bool = False) -> None:
    """Boot an entry and fill target with core.elf, core.kdump, core-raw.kdump, truth/ and meta.json.

    small is for cores that are committed: only core.kdump, in order and packed hard, and less truth.
    """
    started = time.monotonic()
    kernel = find_kernel(entry, archive)
    own: Dict[str, bytes] = {}
    if entry.machine.foreign and (not entry.oracle or kernel.headers):
        kernel = tables.with_headers(kernel, archive)
        own["tables"] = tables.module(kernel, archive)
    boot_seconds = qemu.persistently(lambda: _build(entry, kernel, target, small, own))
    say(f"{entry.name}: {time.monotonic() - started:.0f} s (ready after {boot_seconds:.0f} s)")


def _build(entry: Entry, kernel: Kernel, target: Path, small: bool, own: Dict[str, bytes]) -> float:
    """One attempt; returns how long the guest took to be ready."""
    with fresh_dir(target) as directory, tempfile.TemporaryDirectory(prefix="kvintro-") as scratch:
        work = Path(scratch)
        (work / "kernel").symlink_to(kernel.image)
        if entry.efi:
            (work / "firmware").symlink_to(firmware(entry.machine))
        (work / "initramfs").write_bytes(_ramdisk(entry, kernel, work, own))
        give_seed(entry, work)
        options = [*guest_options(entry), *_disks(entry), "-initrd", "initramfs"]
        with qemu.Qemu(work, options, entry.machine) as guest:
            if entry.rare:
                # The driver finds it waiting. The plugged memory counts, as far as QEMU is concerned.
                guest.command("balloon", {"value": entry.memory_mb + 256 - BALLOON_MB << 20})
                _break_memory(guest)
            boot_seconds = guest.wait_for(READY, boot_timeout(entry))
            balloon = guest.command("query-balloon")["actual"] if entry.rare else None
            cpu = guest.stop_idle()
            dumped = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            truth = _write_truth(work, directory)
            if entry.arch == RISCV64.name:
                _write_note(guest, truth, directory / "truth" / "vmcoreinfo-text")
            _ask_monitor(guest, cpu, truth, directory / "truth")
            _dump(guest, directory)
            if entry.machine.foreign:
                _dump_foreign(guest, entry, truth, directory)
            if small:
                _make_small(directory, text_pages(truth) if entry.without_text else ())
            (directory / "truth" / "console.log").write_text(guest.console())
        if kernel.config:
            config = gzip.compress(kernel.config.read_bytes(), mtime=0)
            (directory / "truth" / "config.gz").write_bytes(config)
        meta = {
            "name": entry.name,
            "package": kernel.package,
            "package_version": kernel.version,
            "vmlinux": str(kernel.vmlinux.relative_to(cache_dir())),
            "release": truth["release"].decode().strip(),
            "cmdline": entry.cmdline,
            "arch": entry.arch,
            **_of_architecture(entry),
            "kaslr": entry.kaslr,
            "efi": entry.efi,
            "furnished": entry.furnished,
            "rare": entry.rare,
            "oracle": entry.oracle,
            "variant": entry.variant,
            "memory_mb": entry.memory_mb,
            **({} if balloon is None else {"balloon_leaves": balloon}),
            "qemu": guest.options,
            "monitor_cpu": cpu,
            "dumped": dumped,
            "boot_seconds": round(boot_seconds, 1),
            "kallsyms_sampled": small,
            "left_out": "kernel text" if small and entry.without_text else None,
        }
        (directory / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return boot_seconds


def _ramdisk(entry: Entry, kernel: Kernel, work: Path, own: Dict[str, bytes]) -> bytes:
    """What the guest runs, and the modules for it; its disks are made in ``work``."""
    modules, programs = [*MODULES], ["workload", "probe"]
    files: Dict[str, bytes] = {}
    if entry.furnished:
        disks.make(work, entry.furnished)
        modules += [*DISK_MODULES, entry.furnished]
        programs.append("furnish")
        files["filesystem"] = entry.furnished.encode()
    if entry.rare:
        modules += RARE_MODULES
        programs.append("rare")
    if entry.busy:
        programs.append("busy")
    if entry.machine.foreign:
        disks.swap(work)
        modules += DISK_MODULES
        programs.append("more")
    return initramfs.build("init", kernel.modules, modules, programs, files, entry.machine, own)


def _of_architecture(entry: Entry) -> Dict[str, object]:
    """Members of meta.json that belong to one architecture."""
    if entry.arch == ARM64.name:
        return {"cpu": entry.cpu, "flavour": entry.flavour or entry.machine.flavour, "rng": entry.rng}
    if entry.arch == RISCV64.name:
        seed = {"kaslr_seed": "".join(KASLR_SEED)} if entry.kaslr else {}
        flavour = entry.flavour or entry.machine.flavour
        return {"cpu": entry.cpu, "flavour": flavour, "va_bits": entry.bits, **seed}
    return {"levels": entry.levels, "pti": entry.pti}


def _break_memory(guest: qemu.Qemu) -> None:
    """Tell the guest by machine checks that pages which it names (guest/rare.c) are broken.

    An error that a scrubber found, which nobody waits for (SRAO: Intel's manual, volume 3, 15.9.3): a valid,
    uncorrected, signalled one, with the address of a page in ADDR. The guest is shown one at a time; a second
    machine check within the first would reset it.
    """
    for number in range(BROKEN_PAGES):
        (address,) = guest.wait_for_match(
            rf"^KVINTRO-BREAK-{number} (0x[0-9a-f]+)\s*$", BOOT_TIMEOUT
        ).groups()
        guest.monitor(f"mce -b 0 9 0xbd000000000000c0 5 {address} 0x8c")


def _write_truth(work: Path, directory: Path) -> Dict[str, bytes]:
    truth = qemu.read_stream(work / "stream")
    for name, data in truth.items():
        packed = name in GZIPPED
        path = directory / "truth" / (f"{name}.gz" if packed else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data, 6, mtime=0) if packed else data)
    return truth


def _dump(guest: qemu.Qemu, directory: Path) -> None:
    """Both formats; QEMU writes into its own directory, and the files are moved from there."""
    guest.dump("core.elf")
    guest.dump("core.kdump", "kdump-zlib")
    for name in ("core.elf", "core.kdump"):
        # QEMU makes them readable by their owner only.
        shutil.move(str(guest.directory / name), str(directory / name))
        (directory / name).chmod(0o644)
    kdump.unflatten(directory / "core.kdump", directory / "core-raw.kdump")
    _dig_holes(directory / "core.elf")


def _write_note(guest: qemu.Qemu, truth: Dict[str, bytes], target: Path) -> None:
    """Read VMCOREINFO from the guest's memory: QEMU has no device with which it could hand its note over."""
    address, size = (int(word, 16) for word in truth["vmcoreinfo"].split())
    guest.command("pmemsave", {"val": address, "size": size, "filename": "note"})
    note = (guest.directory / "note").read_bytes()
    truth[target.name] = note[note.index(b"VMCOREINFO") + 12 :].split(b"\0")[0]
    target.write_bytes(truth[target.name])


def _dump_foreign(guest: qemu.Qemu, entry: Entry, truth: Dict[str, bytes], directory: Path) -> None:
    """Write a kdump and the raw memory.

    QEMU's own kdump of arm64 has a wrong machine ("Unknown") and a wrong block size (64 KB), and that of
    riscv64 has no VMCOREINFO. It is kept as qemu.kdump.
    """
    (directory / "core.kdump").replace(directory / "qemu.kdump")
    (directory / "core-raw.kdump").unlink()
    version, text = truth["version"].decode(), truth.get("vmcoreinfo-text", b"")
    kdump.from_elf(directory / "core.elf", directory / "core.kdump", version, entry.machine.uname, text)
    (directory / "core-raw.kdump").hardlink_to(directory / "core.kdump")
    size = entry.memory_mb << 20
    raw = {"val": entry.machine.ram, "size": size, "filename": "core.raw"}
    guest.command("pmemsave", raw, timeout=600)
    shutil.move(str(guest.directory / "core.raw"), str(directory / "core.raw"))
    (directory / "core.raw").chmod(0o644)
    _dig_holes(directory / "core.raw")


def _dig_holes(path: Path) -> None:
    """Save disk: most of a dump is free pages, which init_on_free made zero."""
    if shutil.which("fallocate"):
        subprocess.run(["fallocate", "--dig-holes", str(path)], check=False)


def text_pages(truth: Dict[str, bytes]) -> Container[int]:
    """The page frames of the kernel's code, without the 2 MB at its start that head.S knows best.

    What arm64 calls "Kernel code" has the read-only data too; the code alone is an area in vmallocinfo.
    """
    for line in truth["iomem"].decode().splitlines():
        match = re.match(r"\s*([0-9a-f]+)-([0-9a-f]+) : Kernel code", line)
        if match:
            start, last = (int(text, 16) for text in match.groups())
            area = re.search(rf" (\d+) \S+ phys=0x0*{start:x} ", truth["vmallocinfo"].decode())
            end = start + int(area.group(1)) if area else last + 1
            return range((start >> 12) + 512, end >> 12)
    return ()


def _make_small(directory: Path, left_out: Container[int]) -> None:
    """Leave what a repository can carry."""
    (directory / "core.kdump").unlink()
    (directory / "core-raw.kdump").rename(directory / "core.kdump")
    for name in ("core.elf", "core.raw", "qemu.kdump"):
        (directory / name).unlink(missing_ok=True)
    kdump.repack(directory / "core.kdump", left_out)
    truth = directory / "truth"
    (truth / "qemu-mtree").unlink()
    kallsyms = gzip.decompress((truth / "kallsyms.gz").read_bytes()).decode().splitlines()
    wanted = set(LANDMARKS)
    step = len(kallsyms) // SAMPLED_SYMBOLS + 1
    kept = [line for i, line in enumerate(kallsyms) if i % step == 0 or line.split()[2] in wanted]
    packed = gzip.compress("".join(f"{line}\n" for line in kept).encode(), 9, mtime=0)
    (truth / "kallsyms.gz").write_bytes(packed)


def _ask_monitor(guest: qemu.Qemu, cpu: int, truth: Dict[str, bytes], target: Path) -> None:
    (target / "registers").write_text(guest.monitor("info registers -a"))
    (target / "qemu-mtree").write_text(guest.monitor("info mtree -f"))
    answers: Dict[str, Optional[str]] = {}
    for address in sample_addresses(truth, guest.machine):
        physical = guest.translate(address, cpu)
        answers[f"{address:#018x}"] = None if physical is None else f"{physical:#x}"
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in answers.items()]
    (target / "gva2gpa.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


# --- the addresses that the monitor is asked about


def _spread(values: List[int], count: int) -> List[int]:
    """At most count of the values, at even distances."""
    if len(values) <= count:
        return values
    return [values[i * len(values) // count] for i in range(count)]


def _symbols(truth: Dict[str, bytes], lowest: int) -> Tuple[List[int], List[int]]:
    image: List[int] = []
    modules: List[int] = []
    for line in gzip.decompress(truth["kallsyms.gz"]).decode().splitlines():
        word = line.split()
        address = int(word[0], 16)
        # Per-CPU symbols are offsets up to 6.14, and addresses of a hole afterwards.
        if address >= lowest:
            (modules if line.endswith("]") else image).append(address)
    return sorted(set(image)), sorted(set(modules))


def _kcore_loads(truth: Dict[str, bytes]) -> Iterator[Tuple[int, int]]:
    for line in truth["kcore-phdrs"].decode().splitlines():
        word = line.split()
        if word and word[0] == "LOAD":
            yield int(word[2], 16), int(word[5], 16)


def _value(truth: Dict[str, bytes], name: str) -> int:
    """A variable as the guest read it, 0 if this kernel does not have it."""
    match = re.search(rf"^{name} \w+ 8 (0x[0-9a-f]+)$", truth["values"].decode(), re.MULTILINE)
    return int(match.group(1), 16) if match else 0


def _holes_of_rare_memory(truth: Dict[str, bytes]) -> Iterator[int]:
    """Pages of the direct map at KFENCE's pool and around broken pages."""
    pool = _value(truth, "__kfence_pool")
    objects = len(re.findall(r"^kfence-#", truth.get("kfence", b"").decode(), re.MULTILINE))
    if pool and objects:
        yield from range(pool - 2 * PAGE, pool + (2 * objects + 4) * PAGE, PAGE)
    base = _value(truth, "page_offset_base")
    for text in re.findall(r" machine_check.* physical (0x[0-9a-f]+) ", truth["workload"].decode()):
        yield from range(base + int(text, 16) - 2 * PAGE, base + int(text, 16) + 3 * PAGE, PAGE)


_PLACES_OF_AMD64 = (
    *range(0xFFFFFE0000000000, 0xFFFFFE0000000000 + 100 * PAGE, PAGE),  # cpu_entry_area
    *range(0xFFFFFFFFFF200000, 0xFFFFFFFFFF800000, 64 * PAGE),  # fixmap
    *range(0xFFFFFFFFFF5FC000, 0xFFFFFFFFFF603000, PAGE),  # around vsyscall
    *range(0xFFFFFFFFFF7F0000, 0xFFFFFFFFFF801000, PAGE),  # the fixmap's top
    0xFFFFFFFFFFE00000,
    0xFFFFFFFFFFFFFFF8,
    0xFFFFFFFF80000000,
    0xFFFFFFFEFFFFFFFF,
    0xFFFFFFEF00000000,
    0xFFFFFF0000000000,
    0xFFFFFBFFFFFFFFFF,
    0xFFFFFC0000000000,
    0xFFFFEC0000000000,
)


def _places_of_arm64(truth: Dict[str, bytes]) -> List[int]:
    """Addresses around each bound of the layout (guest/tables.c), and of the fixmap."""
    lines = truth.get("layout", b"").decode().splitlines()
    values = {name: int(value, 16) for name, value in map(str.split, lines)}
    top = values.get("FIXADDR_TOP", 0)
    chosen = list(range(top - (8 << 20), top + PAGE, 32 * PAGE)) if top else []
    for address in values.values():
        chosen += [address - 1, address, address + 8]
    return chosen


def _places_of_riscv64(truth: Dict[str, bytes]) -> List[int]:
    """Addresses around each bound that VMCOREINFO has, and of the fixmap and the I/O ports below vmemmap."""
    numbers = dict(re.findall(r"^NUMBER\((\w+)\)=(\w+)$", truth["vmcoreinfo-text"].decode(), re.MULTILINE))
    bounds = [int(value, 0) for value in numbers.values() if value.startswith("0xf")]
    chosen = [bound + more for bound in bounds for more in (-1, 0, 8)]
    low = int(numbers["VMEMMAP_START"], 0)
    return chosen + list(range(low - (24 << 20), low, 64 * PAGE))


def sample_addresses(truth: Dict[str, bytes], machine: Machine) -> List[int]:
    """About 1500 addresses of every region, and some just outside of each."""
    if machine is ARM64:
        fixed, lowest = _places_of_arm64(truth), 0xFFF0000000000000
    elif machine is RISCV64:
        fixed, lowest = _places_of_riscv64(truth), 0xFFFFFFFF00000000
    else:
        fixed, lowest = list(_PLACES_OF_AMD64), 0xFFFFFFFF80000000
    image, modules = _symbols(truth, lowest)
    chosen: Set[int] = set(_spread(image, 300)) | set(_spread(modules, 150))

    areas: List[int] = []
    for line in truth["vmallocinfo"].decode().splitlines():
        match = re.match(r"0x([0-9a-f]+)-0x([0-9a-f]+)", line)
        if match:
            start, end = (int(text, 16) for text in match.groups())
            areas += [start, start + 0x123, end - 2 * PAGE, end - PAGE, end, start - 1]
    chosen |= set(_spread(areas, 350))

    for start, size in _kcore_loads(truth):
        end = start + size
        chosen |= {start - 1, start, end - 1, end}
        # Regions of terabytes are nearly empty: their middle is asked for twice, RAM at many places.
        count = 64 if size < 1 << 40 else 2
        chosen |= {start + size * i // count + 8 * i for i in range(count)}

    chosen |= set(fixed) | set(_holes_of_rare_memory(truth))
    # Below the half lie processes, and what is not canonical is not an address.
    return sorted(a for a in chosen if 0xFF00000000000000 <= a < 1 << 64)
