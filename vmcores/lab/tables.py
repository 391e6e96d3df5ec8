# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds guest/tables.c, the module that shows page tables where the kernel has no file for that.

Debian's headers packages have everything for that but the compiler. The tools (linux-kbuild) are programs for
the host.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from lab.common import GUEST, LabError, cache_dir, digest, fresh_dir, lock, run, say
from lab.machine import RISCV64, Machine
from lab.packages import Archive, Kernel

NAME = "tables"
#: In the C that kernels are written in since 5.18, and without the flags for tracing, which an older
#: compiler may not know.
KBUILD = f"obj-m := {NAME}.o\nccflags-y := -std=gnu11\nccflags-remove-y := $(CC_FLAGS_FTRACE)\n"
#: Options that need a newer compiler than the host's, or a complete vmlinux.
WITHOUT = (
    *("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT", "CONFIG_DEBUG_INFO_BTF_MODULES"),
    *("CONFIG_TOOLCHAIN_HAS_ZABHA", "CONFIG_TOOLCHAIN_HAS_ZACAS"),
)


#: The files of the kernel's sources that become a part of the module where its binary does not have them, and
#: what they are called there.
OWN_FILES = {"mm/ptdump.c": "mm-ptdump.c", "arch/riscv/mm/ptdump.c": "arch-ptdump.c"}


def module(kernel: Kernel, archive: Archive) -> bytes:
    """The module for one kernel with headers, built unless the cache has it."""
    assert kernel.headers and kernel.config
    source = (GUEST / f"{NAME}.c").read_bytes()
    # Kernels that the lab built itself may have other configurations and the same release.
    key = digest(source, KBUILD.encode(), kernel.config.read_bytes())
    target = cache_dir() / "tables" / f"{kernel.release}-{key}.ko"
    with lock(f"tables-{kernel.release}"):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                work = Path(scratch)
                (work / f"{NAME}.c").write_bytes(source)
                (work / "Kbuild").write_text(KBUILD)
                if archive.machine is RISCV64:
                    _own_files(kernel, archive, work)
                _make(kernel.headers, work, archive.machine)
                (work / f"{NAME}.ko").rename(target)
    return target.read_bytes()


def with_headers(kernel: Kernel, archive: Archive) -> Kernel:
    """The same kernel with headers, and with the configuration that they have if its own package has none."""
    headers = kernel.headers or _headers(kernel, archive)
    return replace(kernel, headers=headers, config=kernel.config or headers / ".config")


def _own_files(kernel: Kernel, archive: Archive, work: Path) -> None:
    """Write the kernel's own files, without initial values that a module cannot have."""
    series = ".".join(kernel.release.split(".")[:2])
    target = cache_dir() / "sources" / series
    if not target.exists():
        say(f"fetching linux-source-{series}, some 150 MB")
        with fresh_dir(target) as partial:
            archive.unpack(f"linux-source-{series}", partial)
            (packed,) = partial.glob("usr/src/linux-source-*.tar.xz")
            names = [f"linux-source-{series}/{name}" for name in OWN_FILES]
            run(["tar", "-xf", str(packed), "--strip-components=1", *names], cwd=partial)
            shutil.rmtree(partial / "usr")
    for name, here in OWN_FILES.items():
        text = (target / name).read_text().replace("&init_mm,\n\t.markers", "NULL,\n\t.markers")
        (work / here).write_text(text.replace('#include "internal.h"\n', ""))


def _make(headers: Path, work: Path, machine: Machine) -> None:
    options = [f"CC={machine.compiler}", *machine.kbuild, *(f"{option}=" for option in WITHOUT)]
    run(["make", "-C", str(headers), f"M={work}", *options, "modules"])
    run([f"{machine.prefix}strip", "--strip-debug", str(work / f"{NAME}.ko")])


def _headers(kernel: Kernel, archive: Archive) -> Path:
    """The directory in which modules of a kernel are built, in the cache."""
    target = cache_dir() / "headers" / kernel.release
    # 6.12.117+deb12-cloud-arm64 is a flavour of 6.12.117+deb12.
    base = re.sub(rf"-(cloud-)?{archive.machine.name}(-\w+)?$", "", kernel.release)
    directory = f"usr/src/linux-headers-{kernel.release}"
    if not target.exists():
        say(f"fetching linux-headers-{kernel.release}")
        with fresh_dir(target) as partial:
            for name in (f"linux-headers-{kernel.release}", f"linux-headers-{base}-common"):
                archive.unpack(name, partial)
            _tools(base, partial, archive)
            for path in (partial / directory / "Makefile", partial / directory / ".kernelvariables"):
                if path.exists():
                    text = path.read_text().replace("=/usr/src/", f"={target}/usr/src/")
                    path.write_text(text.replace("include /usr/src/", f"include {target}/usr/src/"))
    return target / directory


def _tools(base: str, tree: Path, archive: Archive) -> None:
    """Unpack the host's tools of a kernel, and see that they run."""
    host = Archive(beside=archive.machine) if archive.machine is RISCV64 else Archive()
    series = ".".join(base.split(".")[:2])
    names = host.matching(rf"linux-kbuild-({re.escape(base)}|{re.escape(series)})")
    if not names:
        raise LabError(f"the archive has no linux-kbuild for {base}")
    host.unpack(names[0], tree)
    (modpost,) = tree.glob("usr/lib/linux-kbuild-*/scripts/mod/modpost")
    real = modpost.with_name("modpost.real-lsb-64")
    real = real if real.exists() else modpost
    if _runs(real):
        real.replace(modpost)
        return
    # It was linked with a newer libc than this host's; an older one reads the same object files.
    usual = Archive()
    for name in usual.matching(r"linux-kbuild-\d+\.\d+\.\d+\+deb\d+"):
        if name == names[0]:
            continue
        with tempfile.TemporaryDirectory(dir=tree) as scratch:
            usual.unpack(name, Path(scratch))
            (other,) = Path(scratch).glob("usr/lib/linux-kbuild-*/scripts/mod/modpost.real-lsb-64")
            if _runs(other):
                say(f"{names[0]} does not run here: its modpost is that of {name}")
                other.replace(modpost)
                return
    raise LabError(f"no modpost of the archive runs here, not even older ones than {names[0]}'s")


def _runs(program: Path) -> bool:
    """Whether the host's libraries are enough for it."""
    done = subprocess.run([str(program)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return b"not found (required by" not in done.stderr
