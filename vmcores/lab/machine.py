# SPDX-License-Identifier: LGPL-2.1-or-later
"""The architectures that the lab boots, and how they differ."""

from dataclasses import dataclass
from typing import Dict, List, Tuple

#: Firmware with the old and the new name of Debian's package.
_OVMF = ("/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd", "/usr/share/OVMF/OVMF_CODE.fd")

SUITES = (
    ("bullseye", False),
    ("bullseye-security", True),
    ("bookworm", False),
    ("bookworm-security", True),
    ("bookworm-backports", False),
    ("trixie-backports", False),
)


@dataclass(frozen=True)
class Machine:
    """One architecture: how its guests are built and run on this host.

    :ivar name: Debian's name of the architecture.
    :ivar channel: QEMU's options with which guest/probe.c can write to the file ``stream``.
    :ivar prefix: the start of the names of the cross compiler and its tools.
    :ivar firmware: files with UEFI firmware; the lab takes the first that exists.
    :ivar idle: patterns that ``info registers`` matches for a CPU that is in the kernel.
    :ivar ram: the physical address where memory begins.
    :ivar flavour: Debian's name of its cloud kernel, or of its only one.
    :ivar wheels: what tags of Python's wheels call it; "" if PyPI does not have all wheels for it.
    :ivar suites: suites that have its kernels; the second of a pair says if it is in the security archive.
    :ivar signed: whether Debian signs its kernels, so that the packages have unsigned ones beside them.
    :ivar uname: what ``uname -m`` says there.
    :ivar kernel_arch: the kernel's name of it, if that is not Debian's.
    :ivar configuration: files with the oracle kernel's configuration; a later one replaces
        lines of an earlier one.
    :ivar image: the file that the kernel's build makes to be booted.
    """

    name: str
    qemu: str
    channel: Tuple[str, ...]
    console: str
    prefix: str
    tools: Dict[str, str]
    firmware: Tuple[str, ...]
    firmware_package: str
    idle: Tuple[str, ...]
    ram: int
    flavour: str
    wheels: str
    suites: Tuple[Tuple[str, bool], ...] = SUITES
    signed: bool = True
    uname: str = ""
    kernel_arch: str = ""
    configuration: Tuple[str, ...] = ("oracle.config",)
    image: str = "arch/x86/boot/bzImage"

    @property
    def foreign(self) -> bool:
        """Whether it needs an apt directory of its own and a cross compiler."""
        return self is not AMD64

    @property
    def compiler(self) -> str:
        """The C compiler."""
        return f"{self.prefix}gcc" if self.foreign else "cc"

    @property
    def kbuild(self) -> List[str]:
        """Variables for the make of a kernel."""
        return (
            [f"ARCH={self.kernel_arch or self.name}", f"CROSS_COMPILE={self.prefix}"] if self.foreign else []
        )


AMD64 = Machine(
    name="amd64",
    qemu="qemu-system-x86_64",
    # A port for plain instructions: faster than an emulated serial line and free of drivers.
    channel=("-chardev", "file,id=truth,path=stream", "-device", "isa-debugcon,iobase=0xe9,chardev=truth"),
    console="ttyS0",
    prefix="",
    tools={
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "cc": "gcc libc6-dev",
        "dpkg": "dpkg",
    },
    firmware=_OVMF,
    firmware_package="ovmf",
    # A CPU that runs a process may be on the user half of its page tables, and miss most of the kernel.
    idle=(r"\bCPL=0\b", r"\bHLT=1\b"),
    ram=0,
    flavour="cloud-amd64",
    wheels="x86_64",
)

ARM64 = Machine(
    name="arm64",
    qemu="qemu-system-aarch64",
    # Semihosting: an instruction with which a guest program writes to a file of the host.
    channel=("-semihosting-config", "enable=on,userspace=on,target=native"),
    console="ttyAMA0",
    prefix="aarch64-linux-gnu-",
    tools={
        "qemu-system-aarch64": "qemu-system-arm",
        "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        "make": "make",
        "dpkg": "dpkg",
    },
    firmware=("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",),
    firmware_package="qemu-efi-aarch64",
    # TTBR1 holds the kernel's tables whenever a CPU is in the kernel.
    idle=(r"\bEL1h\b",),
    ram=0x40000000,
    flavour="cloud-arm64",
    wheels="aarch64",
    uname="aarch64",
    configuration=("oracle.config", "oracle-arm64.config"),
    image="arch/arm64/boot/Image",
)

RISCV64 = Machine(
    name="riscv64",
    qemu="qemu-system-riscv64",
    channel=("-semihosting-config", "enable=on,userspace=on,target=native"),
    console="ttyS0",
    prefix="riscv64-linux-gnu-",
    tools={
        "qemu-system-riscv64": "qemu-system-misc opensbi",
        "riscv64-linux-gnu-gcc": "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross",
        "fdtput": "device-tree-compiler",
        "make": "make",
        "dpkg": "dpkg",
    },
    firmware=(),
    firmware_package="",
    # The kernel's half is in the tables of every process; only the mode matters for what may be read.
    idle=(),
    ram=0x80000000,
    flavour="riscv64",
    wheels="",
    suites=(("trixie", False), ("forky", False)),
    signed=False,
    uname="riscv64",
    kernel_arch="riscv",
    configuration=("oracle-riscv64.config",),
    image="arch/riscv/boot/Image",
)

MACHINES: Dict[str, Machine] = {machine.name: machine for machine in (AMD64, ARM64, RISCV64)}
