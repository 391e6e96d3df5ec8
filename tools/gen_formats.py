#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fill the table of docs/formats.md: whether every core of the lab is read the same in every format.

    tools/gen_formats.py [NAME...]

Needs the cores that vmcores/build.py makes. Writes each of them in every format, in most without its note. A
format passes if its layout equals that of the core that QEMU dumped. Takes some minutes.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import drgn  # noqa: E402

from kvintro.errors import KvintroError  # noqa: E402
from kvintro.kernels import Kernel  # noqa: E402
from kvintro.opening import open_kernel  # noqa: E402
from kvintro.reports.layout import layout  # noqa: E402
from kvintro.source import Request  # noqa: E402
from tests import memory_files as files  # noqa: E402

PAGE = ROOT / "docs" / "formats.md"
BUILT = ROOT / "vmcores" / "built"
_TABLE = re.compile(r"(<!-- tried -->\n).*?(<!-- end -->)", re.S)
Range = Tuple[int, bytes]


def _ranges(path: Path) -> List[Range]:
    """The ranges of RAM in an ELF core."""
    from kvintro.source.elf import read_headers

    wanted = [start for start, _ in files.dumped_ranges(path)]
    with path.open("rb") as file:
        found = []
        for segment in read_headers(file).segments:
            if segment.paddr in wanted:
                file.seek(segment.offset)
                found.append((segment.paddr, file.read(segment.filesz)))
    return found


def _kdump(path: Path, *, note: bool, flat: bool) -> bytes:
    data = bytearray(path.read_bytes())
    if not note:
        block = int.from_bytes(data[428:432], "little")
        data[block + 32 : block + 64] = bytes(32)
    return files.flattened(bytes(data), 1 << 16) if flat else bytes(data)


def _split(plain: Path, target: Path, frames: int) -> List[str]:
    """Split the dump into three parts."""
    bounds = [0, frames // 3 | 1, frames // 3 * 2 | 1, max(frames, 1 << 20)]
    parts = []
    for number, data in enumerate(files.split(plain.read_bytes(), bounds)):
        parts.append(f"{target}.{number}")
        Path(parts[-1]).write_bytes(data)
    return parts


def _made(directory: Path, frames: int) -> Dict[str, Callable[[Path], Optional[List[str]]]]:
    """For each column, a function that makes its file, or makes several files and returns them."""
    plain = directory / "core-raw.kdump"
    ranges: List[Range] = []

    def written(write: Callable[[Path, List[Range]], object]) -> Callable[[Path], None]:
        def of_core(target: Path) -> None:
            if not ranges:
                ranges.extend(_ranges(directory / "core.elf"))
            write(target, ranges)

        return of_core

    def of_ranges(make: Callable[[List[Range]], bytes]) -> Callable[[Path], None]:
        return written(lambda target, found: target.write_bytes(make(found)))

    def of_kdump(note: bool, flat: bool) -> Callable[[Path], None]:
        return lambda target: (target.write_bytes(_kdump(plain, note=note, flat=flat)), None)[1]

    made: Dict[str, Callable[[Path], Optional[List[str]]]] = {
        "ELF, no note": of_ranges(files.elf_without_notes),
        "kdump": of_kdump(True, False),
        "flattened": of_kdump(True, True),
        "kdump, no note": of_kdump(False, False),
        "flattened, no note": of_kdump(False, True),
    }
    for name, (flag, library) in files.CODECS.items():
        pack = library()
        if name != "zlib" and pack is not None:
            made[f"kdump, {name}"] = _packer(plain, flag, pack)
    made["kdump, split"] = lambda target: _split(plain, target, frames)
    made["raw"] = written(files.raw)
    made["LiME"] = of_ranges(files.lime)
    snappy = files.snappy()
    if snappy is not None:
        made["AVML"] = of_ranges(_avml(snappy))
    return made


def _packer(plain: Path, flag: int, pack: files.Codec) -> Callable[[Path], None]:
    return lambda target: files.packed_again(plain, target, flag, pack)


def _avml(pack: files.Codec) -> Callable[[List[Range]], bytes]:
    return lambda ranges: files.avml(ranges, pack)


def _opened(paths: List[str]) -> Optional[Kernel]:
    try:
        return open_kernel(Request(core=paths))
    except KvintroError as error:
        print(f"  {paths[0]}: {error.what}", file=sys.stderr)
        return None


def _regions(kernel: Kernel) -> Any:
    return layout(kernel).tables[0].rows


def main() -> int:
    """Try all formats, and write the table."""
    wanted = sys.argv[1:]
    rows: List[List[str]] = []
    columns: List[str] = []
    for meta_path in sorted(BUILT.glob("*/meta.json")):
        directory = meta_path.parent
        if wanted and directory.name not in wanted:
            continue
        print(directory.name, file=sys.stderr)
        meta = json.loads(meta_path.read_text())
        reference = _opened([str(directory / "core.elf")])
        if reference is None:
            return 1
        expected = _regions(reference)
        cells = ["yes"]
        made = _made(directory, reference.max_pfn.value)
        columns = ["ELF", *made]
        for write in made.values():
            with tempfile.TemporaryDirectory() as scratch:
                target = Path(scratch) / "dump"
                other = _opened(write(target) or [str(target)])
                same = other is not None and _regions(other) == expected
                cells.append("yes" if same else "**no**")
        kaslr = "KASLR" if meta["kaslr"] else "no KASLR"
        name = f"{meta['release']}, {meta['levels']} levels, {kaslr}" + (", EFI" if meta["efi"] else "")
        name += ", rare memory" if meta.get("rare") else ""
        rows.append([name, reference.source.symbols, *cells])
    head = ["kernel", "symbols by", *columns]
    lines = [head, ["---"] * len(head), *rows]
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    table = f"Tried on {today} with drgn {drgn.__version__}.\n\n" + "".join(
        "| " + " | ".join(line) + " |\n" for line in lines
    )
    PAGE.write_text(_TABLE.sub(lambda m: m[1] + table + m[2], PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
