# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formats that kvintro does not read but may be given: each has a name and advice.

The marks come from QEMU's qemu-file and docs/interop/qcow2.rst, libvirt's qemu_saveimage.h, Xen's
tools/libs/saverestore and docs/misc/dump-core-format.txt, VirtualBox's dbgfcorefmt.h, crash's
vmware_vmss.h, makedumpfile's sadump_mod.h, kernel/power/swap.c, LKCD's dump.h, s390-tools' zgetdump, and
file(1) for files that are not dumps at all.
"""

from __future__ import annotations

from typing import Sequence, Tuple

from kvintro.source.content import Content
from kvintro.source.dump import READS, Format, Test, begins, either, ends, has, matches
from kvintro.source.formats.raw import LEAST as RAW_LEAST

HEAD = 1 << 10
_SHORTEST = 16  # bytes; a shorter file may be truncated within its mark
_AS_ELF = "virsh dump --memory-only DOMAIN FILE writes ELF, as QEMU's dump-guest-memory does"
_VM_AGAIN = "dump the guest as ELF: "
_SWAP_PAGES = (4096, 8192, 16384, 32768, 65536)


def _swap(*marks: bytes) -> Test:
    """Swap space: its mark ends the first page (mm/swapfile.c, kernel/power/swap.c)."""
    return either(*(has(page - 10, *marks) for page in _SWAP_PAGES))


def _mbr(content: Content, head: bytes) -> bool:
    """A boot sector with a partition table: all flags are valid, and at least one partition has sectors."""
    if head[510:512] != b"\x55\xaa":
        return False
    entries = [head[at : at + 16] for at in range(446, 510, 16)]
    return all(entry[0] in (0, 0x80) for entry in entries) and any(
        entry[4] and any(entry[12:16]) for entry in entries
    )


def _empty(content: Content, head: bytes) -> bool:
    return content.size == 0


def _zeros(content: Content, head: bytes) -> bool:
    """A file that is one hole, or a small file of zeros."""
    if any(head):
        return False
    small = content.size < RAW_LEAST and not any(content.at(0, content.size))
    return small or not any(True for _ in content.stretches(0, content.size))


def _text(content: Content, head: bytes) -> bool:
    sample = head.rstrip(b"\0") if content.size <= HEAD else head
    try:
        text = sample.decode("utf-8", "strict" if content.size <= HEAD else "ignore")
    except UnicodeDecodeError:
        return False
    return len(text) > 3 and all(c.isprintable() or c in "\t\n\r\f\x1b\ufeff" for c in text)


def _unpack(command: str) -> str:
    return f"unpack it first: {command}"


_PACKED: Sequence[Tuple[str, Test, str]] = (
    ("gzip", begins(b"\x1f\x8b\x08"), "gunzip FILE.gz"),
    ("gzip", begins(b"\x1f\x8b"), "gunzip FILE.gz"),
    ("bzip2", matches(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90|$)"), "bunzip2 FILE.bz2"),
    ("xz", begins(b"\xfd7zXZ\0"), "unxz FILE.xz"),
    ("zstd", matches(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18.{4}"), "unzstd FILE.zst"),
    ("lz4", begins(b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18", b"\x03\x21\x4c\x18"), "unlz4 FILE.lz4"),
    ("lzop", begins(b"\x89LZO\0\r\n\x1a\n"), "lzop -d FILE.lzo"),
    ("lzma", matches(rb"\x5d\0\0[\0-\xff]{2}(\xff{8}|.{5}\0{3})"), "unlzma FILE.lzma"),
    ("lzip", begins(b"LZIP\1"), "lzip -d FILE.lz"),
    ("compress", begins(b"\x1f\x9d"), "uncompress FILE.Z"),
    ("7-Zip", begins(b"7z\xbc\xaf\x27\x1c"), "7z x FILE.7z"),
    ("zip", begins(b"PK\x03\x04", b"PK\x05\x06"), "unzip FILE.zip"),
    ("RAR", begins(b"Rar!\x1a\x07"), "unrar x FILE.rar"),
    ("lrzip", begins(b"LRZI"), "lrzip -d FILE.lrz"),
    ("snappy's framing", begins(b"\xff\x06\0\0sNaPpY"), "snzip -d FILE.sz"),
)

#: Those that kvintro unpacks itself.
_READ = ("gzip", "bzip2", "xz", "zstd", "lz4", "lzop", "lzma")

#: Tried before the formats that kvintro reads, as they look like one of those.
LOOKALIKES: Tuple[Format, ...] = (
    Format("empty", _empty, "take the dump again; check what wrote it and the disk it was written to"),
)

#: Tried after the formats that kvintro reads, in this order.
OTHERS: Tuple[Format, ...] = (
    # Dumps and saved machines of other kinds.
    Format(
        "a guest saved by an old Xen (before 4.6)",
        either(begins(b"Xen saved domain, ", b"LinuxGuestRecord"), matches(rb"\xff{8}FNEX")),
        "restore it (xl restore FILE), and dump it with xl dump-core",
    ),
    Format(
        "a machine saved by VirtualBox (.sav)",
        begins(b"\x7fVirtualBox SavedState"),
        "start the machine, and dump it with VBoxManage debugvm NAME dumpvmcore --filename FILE",
    ),
    Format(
        "a machine saved by Hyper-V (.vmrs)",
        begins(b"\x14\x20\x28\x01"),
        "convert it to raw memory on Windows, with LiveCloudKd or MemProcFS (by Microsoft's "
        "VmSavedStateDumpProvider), or have kdump write a dump in the guest",
    ),
    Format(
        "a crash dump of Windows",
        begins(b"PAGEDUMP", b"PAGEDU64", b"MDMP\x93\xa7"),
        "kvintro reads Linux kernels; WinDbg reads this one. For a Linux guest, use QEMU's "
        "dump-guest-memory without -w",
    ),
    Format(
        "a hibernation file of Windows",
        begins(b"hibr\0", b"HIBR\0", b"HIBR", b"wake", b"WAKE", b"RSTR"),
        "kvintro reads Linux kernels",
    ),
    Format(
        "a dump of Fujitsu's sadump",
        begins(b"sadump\0\0"),
        "convert it: makedumpfile -l -d 31 FILE vmcore (with a vmlinux: -x), or use crash",
    ),
    Format(
        "swap space with a hibernation image",
        _swap(b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"),
        "kvintro does not read hibernation images; resume the machine and have kdump write a dump",
    ),
    Format("swap space", _swap(b"SWAPSPACE2", b"SWAP-SPACE"), "memory that was swapped out is not a dump"),
    Format(
        "an LKCD dump",
        begins(b"\xed\x23\x8f\x61\x73\x01\x19\xa8"),
        "use a version of crash from that time (SLES 9, 10)",
    ),
    Format(
        "a dump of s390",
        begins(b"\xa8\x19\x01\x73\x61\x8f\x23\xfd"),
        "kvintro does not read kernels of s390; zgetdump converts the dump to ELF for crash",
    ),
    Format(
        "a Mach-O file",
        matches(rb"[\xce\xcf]\xfa\xed\xfe|\xfe\xed\xfa[\xce\xcf]|\xca\xfe\xba\xbe"),
        "kvintro reads Linux kernels; lldb reads cores of macOS",
    ),
    Format(
        "a Proxmox backup (.vma)",
        begins(b"VMA\0"),
        "it has no memory; dump the running guest as ELF with dump-guest-memory in qm monitor",
    ),
    # Packed.
    *(
        Format(f"compressed with {name}", test, _unpack(command), packing=name if name in _READ else "")
        for name, test, command in _PACKED
    ),
    Format(
        "a tar archive",
        has(257, b"ustar"),
        "unpack it first: tar xf FILE; then give the dump that was in it",
        packing="tar",
    ),
    Format("a cpio archive (an initramfs?)", begins(b"070701", b"070702", b"070707"), READS),
    Format("encrypted", begins(b"-----BEGIN PGP", b"age-encryption.org", b"Salted__"), "decrypt it first"),
    Format(
        "a forensic image (EWF, AFF)",
        begins(b"EVF\x09\x0d\x0a\xff\0", b"EVF2\r\n\x81\0", b"LVF\x09\x0d\x0a\xff\0", b"AFF10\r\n"),
        "export raw memory from it: ewfexport -t MEMORY -f raw FILE",
    ),
    # Disks and kernels.
    Format(
        "a disk image (VMDK, VDI, VHD, VHDX or QED)",
        either(
            begins(b"KDMV", b"COWD", b"# Disk DescriptorFile", b"vhdxfile", b"conectix", b"QED\0"),
            has(64, b"\x7f\x10\xda\xbe"),
            ends(512, b"conectix"),
        ),
        "give the guest's memory, not its disk; /var/crash in it may have a dump",
    ),
    Format("an encrypted disk (LUKS)", begins(b"LUKS\xba\xbe"), "give a dump of memory, not a disk"),
    Format("a squashfs image", begins(b"hsqs", b"sqsh"), "give a dump of memory, not a file system"),
    Format("an ISO image", has(32769, b"CD001"), "give a dump of memory, not a file system"),
    Format(
        "a file system or disk image",
        either(
            has(1080, b"\x53\xef"),
            begins(b"XFSB"),
            has(65600, b"_BHRfS_M"),
            has(512, b"EFI PART"),
            has(4096, b"EFI PART"),
            has(512, b"LABELONE"),
            has(1024, b"\x10\x20\xf5\xf2"),
            begins(b"\x3a\xff\x26\xed"),
            _mbr,
        ),
        "give a dump of memory, not a disk; /var/crash in it may have one",
    ),
    Format(
        "a kernel to boot (bzImage)",
        has(514, b"HdrS"),
        "-c takes a dump; give the uncompressed vmlinux, a kernel's debuginfo, with -s",
    ),
    Format("a program of Windows or EFI", begins(b"MZ"), READS),
    Format("BTF", begins(b"\x9f\xeb\x01\0"), "give it with --btf; -c takes a dump"),
    Format(
        "the text of VMCOREINFO",
        begins(b"OSRELEASE="),
        "give it with --vmcoreinfo FILE; -c takes a dump",
    ),
    Format(
        "a pointer to a file in Git LFS", begins(b"version https://git-lfs"), "fetch the file: git lfs pull"
    ),
    Format("a web page", matches(rb"\s*<(!DOCTYPE html|html)"), "the download went wrong; try it again"),
    Format(
        "a report of kvintro",
        matches(rb'\{\s*"schema": "kvintro\.'),
        "kvintro diff compares it; -c takes a dump",
    ),
    Format(
        "too short to be a kernel dump",
        lambda content, head: content.size < _SHORTEST and any(head),
        "was it cut off? take or copy the dump again",
    ),
    Format(
        "a text file, not a kernel dump",
        _text,
        f"{READS}; vmcore-dmesg.txt is the log, and the dump is beside it",
    ),
    Format(
        "nothing but zeros",
        _zeros,
        "take or copy the dump again; check the disk it was written to",
    ),
)
UNKNOWN = Format("not a kernel dump", lambda content, head: True, READS)
