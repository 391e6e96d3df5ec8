"""The oracle: a kernel of our own configuration, which can print its own page tables."""

import os
import shutil
import time
from pathlib import Path
from typing import List

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
from lab.packages import Archive, Kernel

FRAGMENT = HERE / "oracle.config"
BUILD_TIMEOUT = 3 * 3600.0


def oracle(series: str, archive: Archive) -> Kernel:
    """The oracle kernel of a series, built unless the cache has it.

    $CACHE/oracle/VERSION-HASH/ holds bzImage, vmlinux with DWARF, config and modules; HASH is that of
    the configuration, so a change of oracle.config makes another kernel.
    """
    name = f"linux-source-{series}"
    key = digest(FRAGMENT.read_bytes())
    with lock("oracle"):
        # A kernel that is there is good enough even when the archive has a newer one meanwhile:
        # the recipe must not rebuild for every point release.
        known = sorted((cache_dir() / "oracle").glob(f"{series}.*-{key}"), key=lambda p: p.stat().st_mtime)
        target = known[-1] if known else _build(name, key, archive)
    package, version, release = (target / "package").read_text().split()
    return Kernel(
        release=release,
        image=target / "bzImage",
        modules=target / "modules",
        config=target / "config",
        package=package,
        version=version,
        vmlinux=target / "vmlinux",
    )


def _build(name: str, key: str, archive: Archive) -> Path:
    need(BUILD_TOOLS, BUILD_HEADERS)
    started = time.monotonic()
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
    configure(source, output)
    say("building the oracle kernel: some minutes")
    jobs = (os.cpu_count() or 1) + 1
    make = ["make", f"O={output}", f"-j{jobs}", "KBUILD_BUILD_USER=kvintro", "KBUILD_BUILD_HOST=lab"]
    log = area / "build.log"
    run([*make, "bzImage", "modules"], cwd=source, log=log, timeout=BUILD_TIMEOUT)
    release = run(["make", "-s", f"O={output}", "kernelrelease"], cwd=source).strip()
    upstream = package.version.split("-")[0]
    target = area / f"{upstream}-{key}"
    with fresh_dir(target) as partial:
        shutil.copy(output / "arch" / "x86" / "boot" / "bzImage", partial / "bzImage")
        shutil.copy(output / "vmlinux", partial / "vmlinux")
        shutil.copy(output / ".config", partial / "config")
        (partial / "modules").mkdir()
        for module in output.rglob("*.ko"):
            # Without DWARF, which insmod would read and drop; .BTF stays.
            run(["strip", "--strip-debug", "-o", str(partial / "modules" / module.name), str(module)])
        (partial / "package").write_text(f"{package.name} {package.version} {release}\n")
    shutil.rmtree(work)
    say(f"the oracle kernel took {time.monotonic() - started:.0f} s")
    return target


def configure(source: Path, output: Path) -> None:
    """Write build/.config from nothing but the fragment, and see that every line of it stuck."""
    env = {"KCONFIG_ALLCONFIG": str(FRAGMENT)}
    for goal in ("allnoconfig", "olddefconfig"):
        run(["make", "-s", f"O={output}", goal], cwd=source, env=env)
    lost = missing_options(FRAGMENT.read_text(), (output / ".config").read_text())
    if lost:
        raise LabError(f"the kernel's configuration dropped what oracle.config asks for: {lost}")


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
