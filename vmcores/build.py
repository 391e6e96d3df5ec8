#!/usr/bin/env python3
"""Boot real kernels under QEMU and keep their dumps beside what they said about themselves.

Cores land in vmcores/built/NAME/, those of another architecture in vmcores/built-ARCH/NAME/ (or
$KVINTRO_VMCORES/NAME/). Downloads and the kernel built from source are kept in $KVINTRO_CACHE, else
in $XDG_CACHE_HOME/kvintro or ~/.cache/kvintro:

  kernels/RELEASE/          unpacked Debian kernels
  headers/, tables/         headers of kernels and the module that is built with them (--arch arm64)
  oracle/VERSION-HASH/      the oracle kernel: bzImage, vmlinux (DWARF), config, modules
  dbg/RELEASE/vmlinux       Debian's vmlinux with DWARF (--debug-vmlinux)
  rootfs/, crash/           the root of live guests; a Debian that has crash (--live, --crash)
"""

import argparse
import fnmatch
import shlex
import signal
import sys
from pathlib import Path
from typing import List, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import boot, live, machine, matrix, rootfs
from lab.common import HERE, LabError, built_dir, need, say
from lab.packages import Archive


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="vmcores/build.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--list", action="store_true", help="print the matrix and what is built of it")
    result.add_argument(
        "--only", nargs="+", metavar="GLOB", help="entries whose name matches, instead of all"
    )
    result.add_argument(
        "--few",
        action="store_true",
        help="entries that have each kernel, paging depth and option at least once",
    )
    result.add_argument(
        "--arch",
        choices=list(machine.MACHINES),
        default=machine.AMD64.name,
        help="the architecture whose rows are meant; amd64, if none is named",
    )
    result.add_argument("--force", action="store_true", help="build again what is there already")
    result.add_argument("--update", action="store_true", help="look for newer kernels first")
    result.add_argument(
        "--shipped", action="store_true", help="the small cores of the repository, in vmcores/ itself"
    )
    result.add_argument(
        "--debug-vmlinux",
        nargs="*",
        metavar="SERIES",
        help="fetch Debian's vmlinux with DWARF for 6.12, 6.1, ... (all of the matrix, if none is named) and "
        "print its path",
    )
    result.add_argument(
        "--live",
        metavar="ENTRY",
        help="boot the kernel of an entry with a Debian root and this checkout's kvintro, run the "
        "command after -- as root and print what it says",
    )
    result.add_argument(
        "--crash",
        nargs=2,
        metavar=("VMLINUX", "CORE"),
        help="run crash on a dump, with the command after --",
    )
    result.add_argument("--timeout", type=float, default=900, help="seconds for --live and --crash")
    result.add_argument("command", nargs="*", metavar="COMMAND", help="for --live and --crash, after --")
    return result


def _command(words: List[str]) -> str:
    """One word is a command line already; several are one command's arguments."""
    if not words:
        raise LabError("say after -- what to run")
    return words[0] if len(words) == 1 else shlex.join(words)


def _live(rows: List[matrix.Entry], name: str, words: List[str], archive: Archive, timeout: float) -> int:
    chosen = [row for row in rows if row.name == name]
    if not chosen:
        raise LabError(f"no entry is called {name}: see --list")
    need(chosen[0].machine.tools)
    (result,) = live.run_live(chosen[0], [_command(words)], archive=archive, timeout=timeout)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.code


def _is_built(directory: Path) -> bool:
    return (directory / "meta.json").exists()


def _build(chosen: List[matrix.Entry], archive: Archive, where: Path, force: bool, small: bool) -> int:
    failures = 0
    for entry in chosen:
        target = where / entry.name
        if _is_built(target) and not force:
            say(f"{entry.name}: there already")
            continue
        try:
            boot.build(entry, archive, target, small)
        except LabError as error:
            # One kernel that does not boot must not cost the others.
            say(f"{entry.name}: {error}")
            failures += 1
    return failures


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the recipe; 0 when everything asked for is there."""
    options = parser().parse_args(arguments)
    # An end from outside leaves nothing behind either: no guest, no scratch directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = machine.MACHINES[options.arch]
    archive = Archive(wanted)
    try:
        archive.update(force=options.update)
        if options.debug_vmlinux is not None:
            need({"dpkg": "dpkg"})
            rows = matrix.ROWS[options.arch][0](archive.newest_series(matrix.NEWEST_MAJOR))
            for series in options.debug_vmlinux or dict.fromkeys(row.series for row in rows):
                print(archive.debug_vmlinux(series))
            return 0
        if options.crash:
            vmlinux, core = map(Path, options.crash)
            print(rootfs.crash(vmlinux, core, [" ".join(options.command)], options.timeout), end="")
            return 0
        newest = archive.newest_series(matrix.NEWEST_MAJOR)
        rows_of, few_of, shipped_of = matrix.ROWS[options.arch]
        rows = (shipped_of if options.shipped else few_of if options.few else rows_of)(newest)
        where = HERE if options.shipped else built_dir(wanted.name if wanted.foreign else "")
        if options.live:
            return _live(rows, options.live, options.command, archive, options.timeout)
        if options.command:
            raise LabError("a command needs --live or --crash; --only chooses entries")
        if options.only:
            rows = [r for r in rows if any(fnmatch.fnmatch(r.name, glob) for glob in options.only)]
            if not rows:
                raise LabError("no entry has such a name: see --list")
        if options.list:
            for row in rows:
                mark = "*" if _is_built(where / row.name) else " "
                print(f"{mark} {row.name:34} {row.summary()}")
            return 0
        need(wanted.tools)
        if any(row.efi for row in rows) and not any(Path(f).exists() for f in wanted.firmware):
            need({}, {wanted.firmware[0]: wanted.firmware_package})
        failures = _build(rows, archive, where, options.force, options.shipped)
    except LabError as error:
        say(f"build.py: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    if failures:
        say(f"{failures} of {len(rows)} could not be built")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
