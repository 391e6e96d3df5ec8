"""What every part of the lab shares: places, commands and the one exception."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence

HERE = Path(__file__).resolve().parent.parent
GUEST = HERE / "guest"


class LabError(Exception):
    """Something the person who runs the recipe can act on: one line, without a traceback."""


def cache_dir() -> Path:
    """Where downloads and built kernels are kept: $KVINTRO_CACHE, else the user's cache."""
    given = os.environ.get("KVINTRO_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvintro"


def built_dir(foreign: str = "") -> Path:
    """Where built cores are put: $KVINTRO_VMCORES, else vmcores/built in this checkout.

    :param foreign: another architecture than the lab's first, whose cores have a directory of their own.
    """
    given = os.environ.get("KVINTRO_VMCORES")
    return Path(given) if given else HERE / (f"built-{foreign}" if foreign else "built")


def say(message: str) -> None:
    """Progress goes to standard error, so that a command's own output can be piped."""
    print(message, file=sys.stderr, flush=True)


def run(
    command: Sequence[str],
    cwd: Optional[Path] = None,
    log: Optional[Path] = None,
    env: Optional[Dict[str, str]] = None,
    timeout: float = 3600,
) -> str:
    """Run a command and return its standard output; a failure names the command and its last words.

    With log, both outputs go to that file and "" is returned.
    """
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(log.open("w")) if log else subprocess.PIPE
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except FileNotFoundError:
            raise LabError(f"{command[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise LabError(f"{command[0]} did not end within {timeout:.0f} s") from None
    if done.returncode:
        words = f"see {log}" if log else done.stderr or done.stdout
        tail = " / ".join(words.strip().splitlines()[-3:])
        raise LabError(f"{' '.join(command[:3])} ... failed with {done.returncode}: {tail}")
    return done.stdout or ""


def digest(*parts: bytes) -> str:
    """A short name for some content."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:12]


def until(seconds: float) -> Iterator[None]:
    """Yield five times a second, until so many seconds have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.2)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Let two runs of the recipe share one cache: the second waits for the first."""
    path = cache_dir() / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def fresh_dir(target: Path) -> Iterator[Path]:
    """A directory to fill beside target, renamed to it when all went well and removed otherwise."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        # Whoever reads the old one meets a gap of microseconds, not of a removal.
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


#: A program that building a kernel takes, and the Debian package that brings it.
BUILD_TOOLS = {
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "pahole": "dwarves",
    "zstd": "zstd",
    "xz": "xz-utils",
    "perl": "perl",
}
#: Headers the kernel's build needs, as files to look for.
BUILD_HEADERS = {
    "/usr/include/libelf.h": "libelf-dev",
    "/usr/include/openssl/ssl.h": "libssl-dev",
}


def need(tools: Dict[str, str], headers: Optional[Dict[str, str]] = None) -> None:
    """Make sure that programs and headers are there: installed when root, else told to be."""
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    missing += [package for path, package in (headers or {}).items() if not Path(path).exists()]
    if not missing:
        return
    packages = " ".join(dict.fromkeys(" ".join(missing).split()))
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LabError(f"please install: apt-get install {packages}")
    say(f"installing {packages}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], env=env)
    run(["apt-get", "install", "-qy", "--no-install-recommends", *packages.split()], env=env)
