"""The oracle: a kernel of our own configuration, which can print its own page tables, and variants of it."""

import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from lab.common import (
    BUILD_HEADERS,
    BUILD_TOOLS,
    HERE,
    LabError,
    cache_dir,
    digest,
    fresh_dir,
    lock,
    need,
    run,
    say,
)
from lab.machine import AMD64, ARM64, RISCV64, Machine
from lab.packages import Archive, Kernel

#: The kernel's own script that copies what modules are built with.
HEADERS_SCRIPT = "scripts/package/install-extmod-build"
BUILD_TIMEOUT = 3 * 3600.0


@dataclass(frozen=True)
class Variant:
    """A kernel that the same tree is built into, once more.

    :ivar lines: lines of the configuration that it changes.
    :ivar uses: what is in the files that these options make other code of, and has to be compiled again. A
        header that mentions an option may be in nearly all of them, and make a difference in few. Without it,
        make decides.
    """

    lines: Mapping[str, str] = field(default_factory=dict)
    uses: str = ""


VARIANTS: Dict[str, Dict[str, Variant]] = {
    AMD64.name: {
        "": Variant(),
        # is_ksym_addr() is all that headers have of it.
        "nokallsymsall": Variant(
            {"CONFIG_KALLSYMS_ALL=y": "# CONFIG_KALLSYMS_ALL is not set"}, "KALLSYMS_ALL|is_ksym_addr"
        ),
    },
    ARM64.name: {
        "": Variant(),
        "64k": Variant(
            {
                'CONFIG_LOCALVERSION="-oracle-arm64"': 'CONFIG_LOCALVERSION="-oracle-arm64-64k"',
                "CONFIG_ARM64_4K_PAGES=y": "CONFIG_ARM64_64K_PAGES=y",
                "CONFIG_KASAN=y": "# CONFIG_KASAN is not set",
                "CONFIG_KASAN_GENERIC=y": "# CONFIG_KASAN_GENERIC is not set",
                "CONFIG_KASAN_OUTLINE=y": "# CONFIG_KASAN_OUTLINE is not set",
            }
        ),
    },
    RISCV64.name: {"": Variant()},
}


def oracle(series: str, archive: Archive, variant: str = "") -> Kernel:
    """The oracle kernel of a series. Builds it, and its variants, if the cache does not have them.

    $CACHE/oracle/VERSION-HASH/ holds the image, vmlinux with DWARF, config, modules and, if the lab has a
    module for it, headers; HASH is that of the configuration, so a change of it makes another kernel.
    """
    machine = archive.machine
    with lock("oracle"):
        if _known(series, variant, machine) is None:
            # Only variants that say what has to be compiled again are cheap to build with the first.
            cheap = [name for name, other in VARIANTS[machine.name].items() if other.uses or not other.lines]
            names = cheap if variant in cheap else [variant]
            missing = [name for name in names if _known(series, name, machine) is None]
            _build(f"linux-source-{series}", missing, archive)
        target = _known(series, variant, machine)
        assert target is not None
    package, version, release = (target / "package").read_text().split()
    return Kernel(
        release=release,
        image=target / Path(machine.image).name,
        modules=target / "modules",
        config=target / "config",
        package=package,
        version=version,
        vmlinux=target / "vmlinux",
        headers=target / "headers" if (target / "headers").exists() else None,
    )


def fragment(variant: str, machine: Machine = AMD64) -> str:
    """The lines of configuration that a variant is made from."""
    lines: List[str] = []
    for name in machine.configuration:
        own = (HERE / name).read_text().splitlines()
        options = {option_of(line) for line in own} - {""}
        lines = [line for line in lines if option_of(line) not in options] + own
    for old, new in VARIANTS[machine.name][variant].lines.items():
        lines[lines.index(old)] = new
    return "".join(f"{line}\n" for line in lines)


def option_of(line: str) -> str:
    """The option that a line of a configuration sets or leaves off, "" if it does neither."""
    match = re.match(r"(CONFIG_\w+)=|# (CONFIG_\w+) is not set$", line)
    return (match[1] or match[2]) if match else ""


def _key(variant: str, machine: Machine) -> str:
    return digest(fragment(variant, machine).encode())


def _known(series: str, variant: str, machine: Machine) -> Optional[Path]:
    # A kernel that is there is good enough even when the archive has a newer one meanwhile:
    # the recipe must not rebuild for every point release.
    found = (cache_dir() / "oracle").glob(f"{series}.*-{_key(variant, machine)}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _build(name: str, variants: Sequence[str], archive: Archive) -> None:
    """Build variants from the source package of that name."""
    need(BUILD_TOOLS, BUILD_HEADERS)
    area = cache_dir() / "oracle"
    area.mkdir(parents=True, exist_ok=True)
    work = area / ".build"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    say(f"fetching {name}, some 150 MB")
    package = archive.unpack(name, work)
    (archived,) = (work / "usr" / "src").glob("linux-source-*.tar.xz")
    run(["tar", "-xf", str(archived)], cwd=work)
    archived.unlink()
    (source,) = (path for path in work.glob("linux-source-*") if path.is_dir())
    output = work / "build"
    output.mkdir()
    upstream = package.version.split("-")[0]
    machine = archive.machine
    for variant in variants:
        started = time.monotonic()
        what = f"the oracle kernel{variant and f' ({variant})'}"
        configure(source, output, fragment(variant, machine), machine)
        if variant != variants[0] and VARIANTS[machine.name][variant].uses:
            _spare(source, output, VARIANTS[machine.name][variant], machine)
        say(f"building {what}: some minutes")
        release = _make(source, output, area / "build.log", machine)
        with fresh_dir(area / f"{upstream}-{_key(variant, machine)}") as partial:
            _keep(output, partial, machine)
            if machine is ARM64:
                # Its own files in debugfs lack what guest/tables.c shows.
                _keep_headers(source, output, machine, partial / "headers")
            (partial / "package").write_text(f"{package.name} {package.version} {release}\n")
        say(f"{what} took {time.monotonic() - started:.0f} s")
    shutil.rmtree(work)


def _spare(source: Path, output: Path, variant: Variant, machine: Machine) -> None:
    """See to it that only what is other code in a variant is compiled again."""
    run(["make", "-s", f"O={output}", *machine.kbuild, "syncconfig"], cwd=source)
    for line in variant.lines:
        # By the age of such a file make knows that everything that mentions the option is out of date.
        option = output / "include" / "config" / line.split("=")[0].replace("CONFIG_", "", 1)
        if option.exists():
            os.utime(option, (0, 0))
    files = ["--include=*.c", "--include=*.S"]
    for name in run(["grep", "-rlE", *files, variant.uses, "."], cwd=source).splitlines():
        (output / name).with_suffix(".o").unlink(missing_ok=True)


def _make(source: Path, output: Path, log: Path, machine: Machine) -> str:
    """Build what is configured; returns the release."""
    jobs = (os.cpu_count() or 1) + 1
    make = ["make", f"O={output}", *machine.kbuild]
    names = [f"-j{jobs}", "KBUILD_BUILD_USER=kvintro", "KBUILD_BUILD_HOST=lab"]
    goals = [Path(machine.image).name, "modules"]
    run([*make, *names, *goals], cwd=source, log=log, timeout=BUILD_TIMEOUT)
    return run([*make, "-s", "kernelrelease"], cwd=source).strip()


def _keep(output: Path, target: Path, machine: Machine) -> None:
    """Copy what guests and tests need."""
    shutil.copy(output / machine.image, target)
    shutil.copy(output / "vmlinux", target / "vmlinux")
    shutil.copy(output / ".config", target / "config")
    (target / "modules").mkdir()
    for module in output.rglob("*.ko"):
        # Without DWARF, which insmod would read and drop; .BTF stays.
        run(
            [
                f"{machine.prefix}strip",
                "--strip-debug",
                "-o",
                str(target / "modules" / module.name),
                str(module),
            ]
        )


def _keep_headers(source: Path, output: Path, machine: Machine, target: Path) -> None:
    """Copy what modules are built with, as packages of headers have it.

    Told that the compiler is the host's, the script leaves the programs of the build as they are.
    """
    compiler = dict.fromkeys(("CC", "HOSTCC"), "cc")
    env = {"srctree": str(source), "SRCARCH": machine.kernel_arch or machine.name, **compiler}
    run(["sh", str(source / HEADERS_SCRIPT), str(target)], cwd=output, env=env)


def configure(source: Path, output: Path, wanted: str, machine: Machine) -> None:
    """Write build/.config from nothing but those lines, and see that every one of them stuck."""
    path = output.parent / "fragment.config"
    path.write_text(wanted)
    env = {"KCONFIG_ALLCONFIG": str(path)}
    for goal in ("allnoconfig", "olddefconfig"):
        run(["make", "-s", f"O={output}", *machine.kbuild, goal], cwd=source, env=env)
    lost = missing_options(wanted, (output / ".config").read_text())
    if lost:
        names = " and ".join(machine.configuration)
        raise LabError(f"the kernel's configuration dropped what {names} ask for: {lost}")


def missing_options(fragment: str, config: str) -> List[str]:
    """Lines of the fragment that a finished configuration does not have."""
    lines = set(config.splitlines())
    lost = []
    for line in fragment.splitlines():
        off = line.startswith("# CONFIG_") and line.endswith(" is not set")
        if line.startswith("CONFIG_") and line not in lines:
            lost.append(line)
        elif off and any(other.startswith(line.split()[1] + "=") for other in lines):
            # An option that does not exist at all is off as well.
            lost.append(line)
    return lost
