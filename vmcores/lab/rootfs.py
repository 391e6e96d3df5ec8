"""Debian trees in the cache: the root file system of live guests, and one that has crash."""

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from lab.common import LabError, cache_dir, digest, fresh_dir, lock, need, run, say
from lab.machine import AMD64, Machine
from lab.packages import Archive, debian_archives, debian_codename

#: Wheels a live guest needs to run kvintro, and tags of the platforms whose wheels run there.
DRGN = "drgn>=0.3"
WHEELS = ("tabulate>=0.9", "numpy>=1.22", "Jinja2>=3.0", "tqdm>=4.60")
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
#: sudo is there because kvintro can become root by it.
PACKAGES = ("python3", "sudo")
#: The suite used where the machine is not Debian itself.
DEFAULT_SUITE = "bookworm"
#: PyPI has no wheel of drgn for arm64. The first Debian whose package is new enough has these.
FOREIGN_SUITE = "forky"
#: A Debian whose QEMU and libvirt are newer than this machine's.
NEWER_SUITE = "trixie"
NEWER_PACKAGES = ("qemu-system-x86", "base-files")
FOREIGN_PACKAGES = ("python3-drgn", "base-files", "bash", "dash", "coreutils", "grep", "libc-bin")
#: The same as the wheels, where PyPI has no wheel of numpy.
PYTHON_PACKAGES = ("python3-tabulate", "python3-numpy", "python3-jinja2", "python3-tqdm")


def debootstrap(suite: str, packages: Sequence[str], target: Path) -> None:
    """A minimal Debian of a suite from the machine's own archive; needs root."""
    if os.geteuid() != 0:
        raise LabError("debootstrap needs root: run this step as root once, the result is kept")
    need({"debootstrap": "debootstrap"})
    main, _ = debian_archives()
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}"]
    if main.signed_by.startswith("/"):
        command.append(f"--keyring={main.signed_by}")
    say(f"debootstrap {suite} with {' '.join(packages)}: a minute or two")
    run([*command, suite, str(target), main.uri], timeout=1800)
    shutil.rmtree(target / "var" / "cache" / "apt", ignore_errors=True)
    shutil.rmtree(target / "var" / "lib" / "apt" / "lists", ignore_errors=True)


def _install_wheels(tree: Path, wheels: Sequence[str], machine: Machine) -> None:
    """Unpack the wheels for the tree's own Python: nothing has to run inside of it."""
    link = os.readlink(tree / "usr" / "bin" / "python3")
    version = link.rpartition("python")[2]
    downloads = tree / "wheels"
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(downloads)]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}"]
    command += [f"--platform={name}_{machine.wheels}" for name in PLATFORMS]
    run([*command, *wheels])
    packages = tree / "usr" / "lib" / "python3" / "dist-packages"
    for wheel in downloads.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    shutil.rmtree(downloads)


def _native(tree: Path, suite: str) -> None:
    """Debian of this host's own architecture."""
    debootstrap(suite, PACKAGES, tree)
    _install_wheels(tree, (DRGN, *WHEELS), AMD64)
    # Compiled here: under emulation it takes longer than what most commands do.
    run(["chroot", str(tree), "/usr/bin/python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages"])


def _foreign_parts(machine: Machine) -> Tuple[Sequence[str], Sequence[str]]:
    """The wheels and the packages that a foreign tree needs."""
    if machine.wheels:
        return WHEELS, FOREIGN_PACKAGES
    return (), (*FOREIGN_PACKAGES, *PYTHON_PACKAGES)


def _foreign(tree: Path, machine: Machine) -> None:
    """What is needed of a Debian that cannot run on this host: unpacked, and none of it configured."""
    tree.mkdir()
    wheels, packages = _foreign_parts(machine)
    Archive(machine, FOREIGN_SUITE).unpack_with_dependencies(packages, tree)
    if wheels:
        _install_wheels(tree, wheels, machine)
    # The scripts that did not run would have made these links, which numpy needs.
    for library in (*tree.glob("usr/lib/*/blas/lib*.so.3"), *tree.glob("usr/lib/*/lapack/lib*.so.3")):
        (library.parent.parent / library.name).symlink_to(f"{library.parent.name}/{library.name}")
    (tree / "root").mkdir(exist_ok=True)
    (tree / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")


def image(machine: Machine = AMD64) -> Path:
    """The ext4 image that live guests have as their root, made unless the cache has it."""
    suite = FOREIGN_SUITE if machine.foreign else debian_codename() or DEFAULT_SUITE
    wheels, packages = _foreign_parts(machine) if machine.foreign else ((DRGN, *WHEELS), PACKAGES)
    key = digest(repr((suite, wheels, packages, "compiled")).encode())
    target = cache_dir() / "rootfs" / "-".join([suite, *([machine.name] if machine.foreign else []), key])
    with lock("rootfs"):
        if not (target / "root.img").exists():
            with fresh_dir(target) as partial:
                tree = partial / "tree"
                if machine.foreign:
                    _foreign(tree, machine)
                else:
                    _native(tree, suite)
                for name in ("lab", "proc", "sys", "dev", "tmp"):
                    (tree / name).mkdir(exist_ok=True)
                need({"mke2fs": "e2fsprogs"})
                # Room for what a run writes; the image is sparse.
                make = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(tree)]
                run([*make, str(partial / "root.img"), "1500M"])
                shutil.rmtree(tree)
    return target / "root.img"


def newer_qemu() -> Path:
    """A program that runs the QEMU of a newer Debian, which needs no root."""
    target = cache_dir() / "qemu" / NEWER_SUITE
    with lock("qemu"):
        if not (target / "qemu").exists():
            with fresh_dir(target) as partial:
                say(f"unpacking QEMU of {NEWER_SUITE}")
                Archive(AMD64, NEWER_SUITE).unpack_with_dependencies(NEWER_PACKAGES, partial)
                words = [
                    f"{target}/usr/lib64/ld-linux-x86-64.so.2",
                    f"--library-path {target}/usr/lib/x86_64-linux-gnu",
                    f"{target}/usr/bin/qemu-system-x86_64",
                    f"-L {target}/usr/share/qemu -L {target}/usr/share/seabios",
                ]
                (partial / "qemu").write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
                (partial / "qemu").chmod(0o755)
    return target / "qemu"


def crash_tree() -> Path:
    """A Debian tree with the newest crash, which needs a newer C library than most machines have."""
    target = cache_dir() / "crash"
    with lock("crash"):
        if not (target / "usr" / "bin" / "crash").exists():
            with fresh_dir(target) as partial:
                debootstrap("sid", ("crash",), partial)
                (partial / "work").mkdir()
    return target


def crash(
    vmlinux: Path,
    core: Path,
    commands: List[str],
    timeout: float = 600,
    *,
    beside: Sequence[Path] = (),
    written: Optional[Path] = None,
) -> str:
    """What crash prints for some commands on a dump.

    :param beside: other files that belong to the dump; crash finds them by their names.
    :param written: a directory for the files that the commands write, by names without a directory.
    """
    if os.geteuid() != 0:
        raise LabError("crash runs in a chroot, which needs root")
    tree = crash_tree()
    with tempfile.TemporaryDirectory(dir=tree / "work") as scratch:
        work = Path(scratch)
        inputs = {"vmlinux": vmlinux, core.name: core, **{path.name: path for path in beside}}
        for name, path in inputs.items():
            if not path.is_file():
                raise LabError(f"there is no file {path}")
            try:
                # Nothing has to be mounted for a link, and nothing remains.
                os.link(path.resolve(), work / name)
            except OSError:
                shutil.copy(path, work / name)
        (work / "commands").write_text("".join(f"{command}\n" for command in [*commands, "quit"]))
        script = f'cd /work/{work.name} && exec crash -s vmlinux "$0" -i commands'
        said = run(["chroot", str(tree), "sh", "-c", script, core.name], timeout=timeout)
        for path in work.iterdir():
            if written is not None and path.name not in (*inputs, "commands"):
                shutil.move(str(path), str(written / path.name))
        return said
