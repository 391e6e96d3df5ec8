# SPDX-License-Identifier: LGPL-2.1-or-later
"""crash gives the same output for a file of ``kvintro convert`` as for the core itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvintro.convert import convert
from kvintro.kernels import Kernel
from kvintro.source.elf import read_headers
from tests.conftest import Core
from tests.vm.test_translate_against_crash import CACHE, _crash

COMMANDS = ["ps", "bt -c 0", "kmem -i", "rd linux_banner 8", "mount"]


@pytest.mark.parametrize(("form", "level"), [("elf", 0), ("kdump", 31)])
def test_crash_says_the_same(core: Core, kernel: Kernel, tmp_path: Path, form: str, level: int) -> None:
    if not core.meta["oracle"] or core.meta["efi"] or not core.meta["kaslr"]:
        pytest.skip("one core of the kernel that is built with DWARF is enough: crash takes its time")
    vmlinux = CACHE / core.meta["vmlinux"]
    if not vmlinux.exists():
        pytest.skip(f"there is no {vmlinux.name} of this kernel in the lab's cache")
    with vmlinux.open("rb") as file:
        if read_headers(file, section_notes=True).build_id != kernel.source.vmcoreinfo["BUILD-ID"]:
            pytest.skip(f"the {vmlinux.name} in the lab's cache is of another build")
    path = tmp_path / "converted"
    convert(kernel, str(path), form=form, compress="zstd", level=level)
    expected = _crash(vmlinux, core.path, COMMANDS)
    assert expected.count("\n") > 80
    assert _crash(vmlinux, path, COMMANDS) == expected
    path.unlink()
