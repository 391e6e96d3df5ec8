"""Every kernel and way of booting that the lab knows.

To add a row, add it to entries(): nothing else has to change.
"""

from dataclasses import dataclass
from typing import Any, List, Tuple

from lab.machine import AMD64, ARM64, MACHINES, RISCV64, Machine

#: The major version whose newest release stands for "the newest kernel".
NEWEST_MAJOR = 7
#: Of each series Debian has one kernel to offer, the newest; the oracle is built from this series.
ORACLE_SERIES = "6.12"


@dataclass(frozen=True)
class Entry:
    """One boot."""

    name: str
    series: str
    oracle: bool = False
    #: Of the oracle kernel, one of kernel_source.VARIANTS.
    variant: str = ""
    levels: int = 4
    kaslr: bool = True
    pti: bool = True
    efi: bool = False
    memory_mb: int = 256
    #: The file system of a machine with more in it, "" for a bare one: two NUMA nodes, swap in use, BPF
    #: programs, traced functions, merged pages (guest/furnish.c).
    furnished: str = ""
    #: Memory of rare kinds besides: of a device (ZONE_DEVICE), plugged in and put online as movable,
    #: plugged in and left offline, given to a balloon, broken (by machine checks: guest/rare.c), and
    #: KFENCE's.
    rare: bool = False
    #: Memory in use, by hundreds of processes and by files (guest/busy.c): for the benchmark.
    busy: bool = False
    #: Leave the code out of a shipped core: as makedumpfile would filter, and half the size.
    without_text: bool = False
    arch: str = AMD64.name
    #: Debian's name of the kernel's configuration; "" is the cloud kernel.
    flavour: str = ""
    #: QEMU's CPU model; "" is the one with all features.
    model: str = ""
    #: Whether the firmware has random numbers. arm64 needs them, or the CPU's, for KASLR when EFI boots it.
    rng: bool = True
    #: riscv64: the bits of its addresses, 39, 48 or 57.
    bits: int = 57
    extra: Tuple[str, ...] = ()

    @property
    def machine(self) -> Machine:
        """Its architecture."""
        return MACHINES[self.arch]

    @property
    def cmdline(self) -> str:
        """The kernel's command line.

        init_on_free makes free pages zero, so that a dump packs well; a probe's addresses must not
        be hashed; memfd_secret needs its own switch before 6.5. An oops, which emulation can cause, ends the
        guest, so that the lab boots it again instead of going on without the process that had it.
        """
        words = [f"console={self.machine.console}", "quiet", "panic=-1", "init_on_free=1", "no_hash_pointers"]
        words += ["secretmem.enable=1", "oops=panic"]
        if self.arch == AMD64.name:
            # A busy host may be too slow for the timer's test.
            words += [f"pti={'on' if self.pti else 'off'}", "no_timer_check"]
        if self.arch == RISCV64.name:
            words += {39: ["no4lvl"], 48: ["no5lvl"], 57: []}[self.bits]
        words += [] if self.kaslr else ["nokaslr"]
        if self.rare:
            words += ["memmap=16M!160M", "memhp_default_state=offline", "kfence.sample_interval=20"]
        return " ".join([*words, *self.extra])

    @property
    def cpu(self) -> str:
        """QEMU's CPU model: all that emulation can do, with or without 5-level paging.

        Of the two makers only Intel's processors report an error that nobody has met yet by a machine check.
        """
        if self.arch == ARM64.name:
            return self.model or "max"
        if self.arch == RISCV64.name:
            return self.model or "rv64,svnapot=true,svpbmt=true"
        maker = ",vendor=GenuineIntel" if self.rare else ""
        return f"max,la57={'on' if self.levels == 5 else 'off'}{maker}"

    def summary(self) -> str:
        """One line for --list."""
        kernel = f"oracle {self.series} {self.variant}".strip() if self.oracle else f"Debian {self.series}"
        parts = [f"{kernel} {self.flavour}".rstrip()]
        parts += [f"{self.levels}-level"] if self.arch == AMD64.name else [self.cpu]
        parts += [f"sv{self.bits}"] if self.arch == RISCV64.name else []
        parts += ["KASLR" if self.kaslr else "nokaslr"]
        parts += ["PTI" if self.pti else "no PTI"] if self.arch == AMD64.name else []
        parts += ["EFI" if self.rng else "EFI without random numbers"] if self.efi else []
        parts += ["furnished"] if self.furnished else []
        parts += ["rare memory"] if self.rare else []
        parts += ["busy"] if self.busy else []
        return ", ".join([*parts, f"{self.memory_mb} MB"])


def entries(newest: str) -> List[Entry]:
    """The matrix; newest is the series of the newest kernel, such as 7.3."""
    rows = []
    # The most used kernel comes first: whoever waits for a core waits for that one.
    for series in ("6.12", "6.1", newest):
        for levels in (4, 5):
            for kaslr in (True, False):
                name = f"debian-{series}-{levels}level-{'kaslr' if kaslr else 'nokaslr'}"
                rows.append(Entry(name, series, levels=levels, kaslr=kaslr))
    rows.append(Entry("debian-6.12-4level-kaslr-nopti", "6.12", pti=False))
    rows.append(Entry("debian-6.12-efi", "6.12", efi=True))
    for levels in (4, 5):
        oracle = f"oracle-{ORACLE_SERIES}-{levels}level"
        rows.append(Entry(oracle, ORACLE_SERIES, True, levels=levels, extra=("page_owner=on",)))
    rows.append(Entry(f"oracle-{ORACLE_SERIES}-efi", ORACLE_SERIES, True, efi=True))
    # Variables have no names in it.
    variant = "nokallsymsall"
    rows.append(Entry(f"oracle-{ORACLE_SERIES}-{variant}", ORACLE_SERIES, True, variant))
    # Its memory does not end with a section.
    rows.append(Entry("debian-5.10-4level-kaslr", "5.10", memory_mb=400, extra=("vsyscall=emulate",)))
    # struct pages of huge pages are given back where asked for. Only XFS before 6.15 keeps what it maps by
    # vm_map_ram(); EROFS leaves the blocks.
    saving = ("hugetlb_free_vmemmap=on",)
    rows.append(Entry("debian-6.1-furnished", "6.1", furnished="xfs", extra=saving))
    rows.append(Entry(f"debian-{newest}-furnished", newest, levels=5, furnished="erofs", extra=saving))
    rows.append(Entry("debian-6.12-rare", "6.12", rare=True))
    # What people boot with when they look for a fault: slabs with red zones, a CPU that is not started, ...
    options = ("slub_debug=FZPU", "page_poison=1", "maxcpus=1", "numa=fake=2", "vsyscall=xonly")
    rows.append(Entry(f"debian-{newest}-options", newest, memory_mb=400, extra=options))
    return rows


#: Rows that repeat what others have between them: each kernel, paging depth and option is left without these.
_REPEATED = (
    *("debian-6.12-4level-kaslr", "debian-6.12-4level-nokaslr", "debian-6.12-5level-kaslr"),
    *("debian-6.1-4level-kaslr", "debian-6.1-4level-nokaslr", "debian-6.1-5level-nokaslr"),
    *("debian-{newest}-4level-kaslr", "debian-{newest}-4level-nokaslr"),
    *("debian-{newest}-5level-kaslr", "debian-{newest}-5level-nokaslr"),
    f"oracle-{ORACLE_SERIES}-4level",
)


def few(newest: str) -> List[Entry]:
    """The rows that every change is tested on: each kernel, paging depth and option is in at least one."""
    repeated = {name.format(newest=newest) for name in _REPEATED}
    return [row for row in entries(newest) if row.name not in repeated]


def shipped(newest: str) -> List[Entry]:
    """The cores in the repository: as small a machine as each kernel boots on."""
    # The depot of stacks that KASAN keeps for its reports would be 16 MB of this guest.
    no_stacks = ("stack_depot_disable=on",)
    return [
        Entry("debian-6.12", "6.12", memory_mb=128),
        Entry(f"debian-{newest}", newest, levels=5, efi=True, memory_mb=192, without_text=True),
        Entry(f"oracle-{ORACLE_SERIES}", ORACLE_SERIES, True, memory_mb=96, extra=no_stacks),
    ]


# --- arm64

#: Enough for hugetlbfs pages of 64 KB, 2 MB and 32 MB.
_ARM64_MB = 512


def _arm64(name: str, series: str, **differs: Any) -> Entry:
    sixteen = {"flavour": "arm64-16k", "memory_mb": 768} if "-16k-" in name else {}
    return Entry(
        **{"name": name, "series": series, "arch": ARM64.name, "memory_mb": _ARM64_MB, **sixteen, **differs}
    )


def arm64_entries(newest: str) -> List[Entry]:
    """The rows of arm64.

    cortex-a72 has 44 bits of physical address, no LPA2, no PAC and no MTE; with KASLR it needs KPTI.
    """
    old = {"model": "cortex-a72"}
    large = {"oracle": True, "variant": "64k", "memory_mb": 2048}
    return [
        _arm64("arm64-6.12-max", "6.12"),
        _arm64("arm64-6.1-a72", "6.1", **old),
        _arm64(f"arm64-{newest}-max", newest),
        _arm64("arm64-6.12-16k-max", "6.12"),
        _arm64("arm64-6.12-a72", "6.12", **old),
        _arm64("arm64-6.12-efi", "6.12", efi=True, extra=("efi=debug",)),
        # max has an instruction for random numbers, so that only the physical address is not random.
        _arm64("arm64-6.12-efi-norng", "6.12", efi=True, rng=False, extra=("efi=debug",)),
        _arm64("arm64-6.12-efi-a72", "6.12", efi=True, rng=False, extra=("efi=debug",), **old),
        _arm64("arm64-6.1-max-nokaslr", "6.1", kaslr=False),
        _arm64(f"arm64-{newest}-a72", newest, **old),
        _arm64(f"arm64-{newest}-16k-max-nokaslr", newest, kaslr=False),
        # cortex-a72 has no pages of 16 KB.
        _arm64(f"arm64-{newest}-16k-nolpa2", newest, model="max,lpa2=off"),
        _arm64("arm64-5.10-a72", "5.10", **old),
        # They print their own page tables: one has KASAN, the other has pages of 64 KB. Two pages of
        # hugetlbfs take a GB of the latter.
        _arm64(f"arm64-oracle-{ORACLE_SERIES}-max", ORACLE_SERIES, oracle=True),
        _arm64(f"arm64-oracle-{ORACLE_SERIES}-a72", ORACLE_SERIES, oracle=True, **old),
        _arm64(f"arm64-oracle-{ORACLE_SERIES}-64k-max", ORACLE_SERIES, **large),
        _arm64(f"arm64-oracle-{ORACLE_SERIES}-64k-a72", ORACLE_SERIES, **large, **old),
    ]


def arm64_few(newest: str) -> List[Entry]:
    """Each kernel, size of pages and way of booting that the core in the repository does not have."""
    names = {
        # The layout before 6.9, 48 bits, KPTI, a random linear map, and symbols of code only.
        "arm64-6.1-a72",
        "arm64-5.10-a72",
        # By EFI without random numbers: no KASLR.
        "arm64-6.12-efi-a72",
        f"arm64-{newest}-16k-nolpa2",
        # KASAN; and 52 bits and 64 KB on a processor with 48.
        f"arm64-oracle-{ORACLE_SERIES}-a72",
        f"arm64-oracle-{ORACLE_SERIES}-64k-a72",
    }
    return [row for row in arm64_entries(newest) if row.name in names]


def arm64_shipped(_newest: str) -> List[Entry]:
    """The core for the repository."""
    return [_arm64("arm64-6.12", "6.12", memory_mb=256, without_text=True)]


# --- riscv64


def _riscv64(name: str, series: str, bits: int, **differs: Any) -> Entry:
    return Entry(
        **{
            "name": name,
            "series": series,
            "bits": bits,
            "arch": RISCV64.name,
            "memory_mb": 384,
            "kaslr": False,
            **differs,
        }
    )


def riscv64_entries(newest: str) -> List[Entry]:
    """The rows of riscv64. Debian's kernels have no KASLR there, so the oracle has it."""
    old = [_riscv64(f"riscv64-{ORACLE_SERIES}-sv{bits}", ORACLE_SERIES, bits) for bits in (39, 48, 57)]
    oracle = f"riscv64-oracle-{ORACLE_SERIES}"
    old += [
        _riscv64(f"{oracle}-kaslr", ORACLE_SERIES, 57, oracle=True, kaslr=True),
        _riscv64(f"{oracle}-nokaslr", ORACLE_SERIES, 48, oracle=True),
    ]
    # Newer kernels believe QEMU's device tree, which says that the processor has sv48 at most.
    return [*old, *(_riscv64(f"riscv64-{newest}-sv{bits}", newest, bits) for bits in (39, 48))]


def riscv64_few(_newest: str) -> List[Entry]:
    """None: emulating this architecture takes CI too long."""
    return []


def riscv64_shipped(_newest: str) -> List[Entry]:
    """The core for the repository: the mode that most processors have, and KASLR."""
    small = {"oracle": True, "kaslr": True, "memory_mb": 96}
    return [_riscv64(f"riscv64-{ORACLE_SERIES}", ORACLE_SERIES, 39, **small)]


#: For each architecture: all rows, those for CI, those for the repository.
ROWS = {
    AMD64.name: (entries, few, shipped),
    ARM64.name: (arm64_entries, arm64_few, arm64_shipped),
    RISCV64.name: (riscv64_entries, riscv64_few, riscv64_shipped),
}
