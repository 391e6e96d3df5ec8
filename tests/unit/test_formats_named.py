# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that kvintro does not read are recognised by content, with a remedy: one line each, exit status 3.

If a tool or a library writes the format, it writes the test's file. The others contain the magic numbers from
the documents named in :mod:`kvintro.source.formats`.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import pytest

from kvintro.cli import main
from tests.synthetic import vmcoreinfo
from tests.unit.test_flattened import elf

MB = 1 << 20
CORE = elf()


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., Tuple[str, str]]:
    """Run kvintro on a file; return the line of the error, without the file's name, and the hint."""

    def run(path: Path, *more: str) -> Tuple[str, str]:
        assert main(["-c", str(path), *more, "info"]) == 3
        out, err = capsys.readouterr()
        what, hint = err.splitlines()
        assert out == ""
        assert hint.startswith("  hint: ")
        return what.replace(f"kvintro: {path} ", ""), hint[len("  hint: ") :]

    return run


def at(offset: int, mark: bytes, size: int = 0) -> bytes:
    """A file with a magic number at an offset."""
    return (bytes(offset) + mark).ljust(size, b"\0")


def zip_of_it() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("vmcore", CORE)
    return out.getvalue()


def disk_with_partitions() -> bytes:
    entry = struct.pack("<B3sB3sII", 0x80, b"\1\1\0", 0x83, b"\xfe\xff\xff", 2048, 100000)
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(16 * MB, b"\0")


NAMED: Dict[str, Tuple[bytes, str, str]] = {
    "qcow2": (struct.pack(">4sIQIIQ", b"QFI\xfb", 2, 0, 0, 16, 1 << 30) + bytes(9000), "no snapshots", "ELF"),
    "VirtualBox sav": (
        b"\x7fVirtualBox SavedState V2.0\n" + bytes(9000),
        "saved by VirtualBox",
        "dumpvmcore",
    ),
    "xl save, old": (b"\xff" * 8 + b"FNEX" + bytes(9000), "saved by an old Xen", "xl restore"),
    "Windows": (b"PAGEDU64" + bytes(9000), "crash dump of Windows", "Linux kernels"),
    "Windows, 32 bits": (b"PAGEDUMP" + bytes(9000), "crash dump of Windows", "Linux kernels"),
    "hiberfil.sys": (b"HIBR" + bytes(9000), "hibernation file of Windows", "Linux kernels"),
    "vmrs": (struct.pack("<I", 0x01282014) + bytes(9000), "Hyper-V", "MemProcFS"),
    "sadump": (b"sadump\0\0" + bytes(9000), "sadump", "makedumpfile"),
    "hibernation": (at(4086, b"S1SUSPEND\0", 16 * MB), "hibernation image", "kdump"),
    "hibernation, uswsusp": (at(4086, b"ULSUSPEND\0", 16 * MB), "hibernation image", "kdump"),
    "hibernation, 64 KB pages": (at(65526, b"S1SUSPEND\0", 16 * MB), "hibernation image", "kdump"),
    "swap": (at(4086, b"SWAPSPACE2", 16 * MB), "swap space", "not a dump"),
    "LKCD": (struct.pack("<Q", 0xA8190173618F23ED) + bytes(9000), "LKCD", "crash"),
    "s390": (struct.pack(">Q", 0xA8190173618F23FD) + bytes(9000), "s390", "zgetdump"),
    "Mach-O": (struct.pack("<I", 0xFEEDFACF) + bytes(9000), "Mach-O", "lldb"),
    "Proxmox backup": (b"VMA\0" + bytes(9000), "Proxmox", "qm monitor"),
    "zstd, skippable frame first": (b"\x50\x2a\x4d\x18" + bytes(9000), "compressed with zstd", "damaged"),
    "zip": (zip_of_it(), "compressed with zip", "unzip"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(9000), "7-Zip", "7z x"),
    "squashfs": (b"hsqs" + bytes(9000), "squashfs", "memory"),
    "ISO": (at(32769, b"CD001", 16 * MB), "ISO image", "memory"),
    "ext4": (at(1080, b"\x53\xef", 16 * MB), "file system or disk", "memory"),
    "GPT": (at(512, b"EFI PART", 16 * MB), "file system or disk", "memory"),
    "MBR": (disk_with_partitions(), "file system or disk", "memory"),
    "VMDK": (b"KDMV" + bytes(9000), "VMDK", "memory"),
    "VHD": (bytes(9 * MB) + b"conectix".ljust(512, b"\0"), "VHD", "memory"),
    "LUKS": (b"LUKS\xba\xbe" + bytes(9000), "LUKS", "memory"),
    "bzImage": (at(514, b"HdrS", 9 * MB), "bzImage", "vmlinux"),
    "BTF": (b"\x9f\xeb\1\0" + bytes(9000), "BTF", "--btf"),
    "VMCOREINFO": (vmcoreinfo().encode(), "text of VMCOREINFO", "--vmcoreinfo"),
    "log": (b"[    0.000000] Linux version 6.1.0\n" * 100, "text file", "vmcore-dmesg"),
    "log of 16 MB": (b"[    0.000000] Linux version 6.1.0\n" * (16 * MB // 35), "text file", "vmcore-dmesg"),
    "text that is not English": ("Zusammenfassung: größer als früher\n".encode() * 9, "text file", "ELF"),
    "web page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page", "download"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    "report": (b'{\n "schema": "kvintro.layout/1"}', "report of kvintro", "kvintro diff"),
    "empty": (b"", "empty", "disk"),
    "zeros": (bytes(100000), "nothing but zeros", "disk"),
    "anything": (bytes(range(256)) * 100, "not a kernel dump", "ELF"),
}


@pytest.mark.parametrize(("content", "name", "hint"), NAMED.values(), ids=NAMED)
def test_what_it_is(
    complaint: Callable[..., Tuple[str, str]], tmp_path: Path, content: bytes, name: str, hint: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    what, remedy = complaint(path)
    assert what.startswith("is ")
    assert name in what
    assert hint in remedy


TOOLS: Dict[str, Tuple[Tuple[str, ...], str]] = {
    "qcow2": (("qemu-img", "create", "-f", "qcow2", "FILE", "16M"), "qcow2"),
    "vmdk": (("qemu-img", "create", "-f", "vmdk", "FILE", "16M"), "VMDK"),
    "vdi": (("qemu-img", "create", "-f", "vdi", "FILE", "16M"), "VDI"),
    "vhdx": (("qemu-img", "create", "-f", "vhdx", "FILE", "16M"), "VHDX"),
    "vhd": (("qemu-img", "create", "-f", "vpc", "FILE", "16M"), "VHD"),
    "ext4": (("mke2fs", "-q", "-t", "ext4", "FILE", "16M"), "file system"),
    "swap": (("mkswap", "FILE"), "swap space"),
}


@pytest.mark.parametrize(("command", "name"), TOOLS.values(), ids=TOOLS)
def test_made_by_its_tool(
    complaint: Callable[..., Tuple[str, str]], tmp_path: Path, command: Tuple[str, ...], name: str
) -> None:
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    tool = shutil.which(command[0], path=search)
    if tool is None:
        pytest.skip(f"{command[0]} is missing")
    path = tmp_path / "file"
    if command[0] == "mkswap":
        path.write_bytes(bytes(16 * MB))
        path.chmod(0o600)
    words = [str(path) if word == "FILE" else word for word in command[1:]]
    subprocess.run([tool, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert name in complaint(path)[0]


def test_nothing_but_a_hole(complaint: Callable[..., Tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1 << 40)
    assert "nothing but zeros" in complaint(path)[0]


def test_format_in_does_not_make_it_one(complaint: Callable[..., Tuple[str, str]], tmp_path: Path) -> None:
    """Naming a format does not hide that the file is known to be something else."""
    path = tmp_path / "file"
    path.write_bytes(b"QEVM" + bytes(9000))
    assert "does not have the format elf" in complaint(path, "--format-in", "elf")[0]


def test_memory_is_none_of_these(tmp_path: Path, monkeypatch: Any) -> None:
    """The first page of a PC's memory, with the real-mode interrupt table, counts as raw memory."""
    from kvintro.source.content import FileContent
    from kvintro.source.formats import recognise

    path = tmp_path / "file"
    for first in (b"\x53\xff\0\xf0" * 256, bytes(4096), b"\0" * 1024 + b"\x55\xaa" * 100):
        path.write_bytes((first + bytes(MB) + b"memory").ljust(9 * MB, b"\0"))
        with path.open("rb") as file:
            assert recognise(FileContent(file)).form == "raw"
