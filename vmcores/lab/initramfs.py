"""What a guest boots into: an archive written here, without cpio, device nodes or root."""

import gzip
import lzma
import re
import shutil
import tempfile
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Tuple

from lab.common import GUEST, LabError, cache_dir, digest, fresh_dir, lock, run
from lab.machine import AMD64, Machine
from lab.packages import Archive

S_IFDIR, S_IFREG, S_IFLNK, S_IFCHR = 0o040000, 0o100000, 0o120000, 0o020000


class Cpio:
    """A cpio archive in the "newc" format that the kernel unpacks."""

    def __init__(self) -> None:
        self._parts: List[bytes] = []
        self._inode = 1
        self._directories = {""}

    def _entry(self, name: str, mode: int, data: bytes = b"", device: Tuple[int, int] = (0, 0)) -> None:
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        self._inode += 1
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + encoded, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def _parents(self, name: str) -> None:
        parent = name.rpartition("/")[0]
        if parent not in self._directories:
            self.directory(parent)

    def directory(self, name: str) -> None:
        """A directory, with those above it."""
        self._parents(name)
        self._directories.add(name)
        self._entry(name, S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, executable: bool = False) -> None:
        """A regular file, with the directories above it."""
        self._parents(name)
        self._entry(name, S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._parents(name)
        self._entry(name, S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        """A device node: /dev/console must be there before anything is mounted."""
        self._parents(name)
        self._entry(name, S_IFCHR | 0o600, device=(major, minor))

    def compressed(self) -> bytes:
        """The whole archive, gzipped: every kernel of the lab can read that."""
        self._entry("TRAILER!!!", 0)
        return gzip.compress(b"".join(self._parts), 6)


def static_busybox(machine: Machine = AMD64) -> bytes:
    """A busybox that needs no dynamic loader: this host's, or Debian's for another architecture."""
    if machine.foreign:
        target = cache_dir() / "busybox" / machine.name
        with lock("busybox"):
            if not target.exists():
                with fresh_dir(target) as partial:
                    Archive(machine).unpack("busybox-static", partial)
        (found,) = (path for path in target.glob("**/bin/busybox") if path.is_file())
        return found.read_bytes()
    path = shutil.which("busybox")
    data = Path(path).read_bytes() if path else b""
    if not data or b"/ld-linux" in data[:4096]:
        raise LabError("busybox is missing or not static: apt-get install busybox-static")
    return data


def static_program(name: str, machine: Machine = AMD64) -> bytes:
    """One of the guest's C programs, compiled for a machine and kept in the cache."""
    source = GUEST / f"{name}.c"
    headers = [path.read_bytes() for path in sorted(GUEST.glob("*.h"))]
    key = digest(source.read_bytes(), *headers, machine.name.encode())
    target = cache_dir() / "guest" / f"{name}-{key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            output = Path(scratch) / name
            run([machine.compiler, "-O2", "-Wall", "-static", "-s", "-o", str(output), str(source)])
            output.rename(target)
    return target.read_bytes()


def _module_name(path: Path) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_")


def _module_bytes(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".ko":
        return path.read_bytes()
    raise LabError(f"{path.name}: a module compressed in a way the lab does not read")


def modules_in_order(directory: Path, wanted: Iterable[str]) -> List[Tuple[str, bytes]]:
    """The wanted modules and all they depend on, in an order in which insmod takes them.

    Each module names its dependencies in its own .modinfo section: Debian's packages carry no
    modules.dep.  A name that this kernel does not have is left out: it is built in, or gone.
    """
    available: Dict[str, Path] = {_module_name(p): p for p in sorted(directory.rglob("*.ko*"))}
    loaded: Dict[str, bytes] = {}

    def load(name: str) -> None:
        path = available.get(name)
        if path is None or name in loaded:
            return
        data = _module_bytes(path)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends.group(1).decode().split(",") if depends else []:
            load(other.replace("-", "_"))
        loaded[name] = data

    for name in wanted:
        load(name.replace("-", "_"))
    return list(loaded.items())


def build(
    init: str,
    modules: Optional[Path],
    wanted: Iterable[str],
    programs: Iterable[str],
    extra: Optional[Dict[str, bytes]] = None,
    machine: Machine = AMD64,
    own: Optional[Dict[str, bytes]] = None,
) -> bytes:
    """An initramfs with busybox, an init script of guest/, some modules and static programs.

    :param own: modules of the lab, which are loaded after the kernel's.
    """
    archive = Cpio()
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    archive.file("init", (GUEST / init).read_bytes(), executable=True)
    archive.file("bin/busybox", static_busybox(machine), executable=True)
    archive.link("bin/sh", "busybox")
    for name in programs:
        archive.file(name, static_program(name, machine), executable=True)
    chosen = modules_in_order(modules, wanted) if modules else []
    chosen += (own or {}).items()
    for name, data in chosen:
        archive.file(f"modules/{name}.ko", data)
    archive.file("modules/order", "".join(f"{name}.ko\n" for name, _ in chosen).encode())
    for path, data in (extra or {}).items():
        archive.file(path, data)
    return archive.compressed()
