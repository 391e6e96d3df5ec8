"""The disks of a furnished guest: room for swap, and files whose kernel code uses vm_map_ram()."""

import tempfile
from pathlib import Path

from lab.common import LabError, need, run

SWAP = 64 << 20
#: By file system: the command that makes it and its Debian package.
TOOLS = {"xfs": ("mkfs.xfs", "xfsprogs"), "erofs": ("mkfs.erofs", "erofs-utils")}


def make(work: Path, kind: str) -> None:
    """Write the files swap and filesystem."""
    if kind not in TOOLS:
        raise LabError(f"the lab makes no {kind}, only {' and '.join(TOOLS)}")
    tool, package = TOOLS[kind]
    need({tool: package})
    swap(work)
    image = work / "filesystem"
    if kind == "xfs":
        # Directories in blocks of 64 KB: sixteen pages that are mapped together.
        _sparse(image, 320 << 20)
        run([tool, "-q", "-n", "size=65536", str(image)])
        return
    with tempfile.TemporaryDirectory(dir=work) as content:
        # Pages that compress well, sixteen and more into one: they are mapped together to be unpacked.
        for name in ("a", "b"):
            text = "".join(f"{name} line {number}\n" for number in range(100_000))
            (Path(content) / name).write_text(text)
        run([tool, "-zlz4", "-C65536", str(image), content])


def swap(work: Path) -> None:
    """Write the file swap."""
    _sparse(work / "swap", SWAP)


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)
