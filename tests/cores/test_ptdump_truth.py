# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page-table dumps against /sys/kernel/debug/page_tables of the same boot, line by line.

Only kernels built with CONFIG_PTDUMP_DEBUGFS have those files.
"""

from __future__ import annotations

import re
from typing import List, Set, Tuple

import pytest

from kvintro.errors import KvintroError
from kvintro.kernels import Kernel
from kvintro.model import AddressRange, Root
from kvintro.queries.roots import efi_root, kernel_root, process_root, user_half
from kvintro.render import render_stream
from kvintro.reports.ptdump import ptdump
from tests.conftest import Core

ARCHITECTURES = ("amd64", "arm64", "riscv64")
KERNEL_HALF = 1 << 63
LINE = re.compile(r"0x([0-9a-f]{16})-0x([0-9a-f]{16})\s+\d+[BKMGTPE] (.*)")


def text_of(kernel: Kernel, root: Root) -> str:
    return "".join(render_stream(ptdump(kernel, root), "text"))


def words(core: Core, name: str) -> str:
    text = core.truth(f"ptdump/{name}")
    if not text:
        pytest.skip(f"{core.name} had nothing to say in {name}")
    return text


def prober(core: Core, kernel: Kernel) -> Root:
    """The process that read the current_* files, and has waited since then."""
    return process_root(kernel, int(core.truth("probe")))


def test_kernel(core: Core, kernel: Kernel) -> None:
    expected, found = words(core, "kernel"), text_of(kernel, kernel_root(kernel))
    if expected.startswith("0x0000000000000000-") and core.architecture == "arm64":
        # 5.10 leaves the level of pg_state 0, so that note_page() treats the first entry as a change: the
        # first line begins at 0, and has no heading.
        expected, found = expected.partition("\n")[2], found.split("\n", 2)[2]
    assert found == expected


def test_efi(core: Core, kernel: Kernel) -> None:
    expected = words(core, "efi")
    if core.architecture == "arm64":
        # Where user addresses end with EFI's, note_page_flush() prints the last heading, which has no lines.
        # In kvintro's output, headings belong to lines.
        fields = (line.split() for line in core.truth("layout").splitlines())
        macros = {line[0]: line[1] for line in fields if len(line) == 2}
        last = "---[ UEFI runtime end ]---\n"
        assert expected.endswith(last) is (macros["TASK_SIZE_64"] == macros["DEFAULT_MAP_WINDOW_64"])
        expected = expected[: -len(last)] if expected.endswith(last) else expected
    assert text_of(kernel, efi_root(kernel)) == expected


def halves(text: str) -> Tuple[List[str], List[str]]:
    """Lines of the user half and of the kernel half."""
    user: List[str] = []
    kernel: List[str] = []
    target = user
    for line in text.splitlines():
        if line == "---[ Kernel Space ]---":
            target = kernel
        target.append(line)
    return user, kernel


def pages(lines: List[str]) -> Set[Tuple[int, str]]:
    """Each mapped 4K page of the user half, with its rights."""
    found = set()
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None or not match[3].split()[1:]:
            continue
        for address in range(int(match[1], 16), int(match[2], 16), 4096):
            found.add((address, match[3]))
    return found


@pytest.mark.parametrize("name", ["current_kernel", "current_user"])
def test_process(core: Core, kernel: Kernel, name: str) -> None:
    expected = words(core, name)
    root = prober(core, kernel)
    found = text_of(kernel, user_half(kernel, root) if name == "current_user" else root)
    their_user, their_kernel = halves(expected)
    our_user, our_kernel = halves(found)
    assert our_kernel == their_kernel
    # The reader kept running between the listing and the dump, and touched some of its pages for the first
    # time. It freed none, and nothing else writes to its half.
    before, after = pages(their_user), pages(our_user)
    assert before - after == set()
    assert len(after - before) < 64


def test_the_two_halves_of_efi_and_kernel_agree_where_both_have_something(core: Core, kernel: Kernel) -> None:
    """efi_mm has the kernel's own entries from the direct map on: the same text, except the EFI region."""
    if not kernel.form.shared_root:
        pytest.skip("efi_mm has no entries of the kernel's half")
    try:
        root = efi_root(kernel)
    except KvintroError as error:
        pytest.skip(error.what)
    here = kernel.locate("direct_map")
    wanted = AddressRange(here.range.start, here.range.start + (1 << 27) - 1)  # type: ignore[union-attr]

    def of(root: Root) -> str:
        return "".join(render_stream(ptdump(kernel, root, wanted=wanted), "text"))

    assert of(root) == of(kernel_root(kernel))


def test_a_part_is_cut_out_of_the_whole(kernel: Kernel) -> None:
    root = kernel_root(kernel)
    whole = [line for line in text_of(kernel, root).splitlines() if LINE.fullmatch(line)]
    for line in whole[3 :: max(1, len(whole) // 40)]:
        match = LINE.fullmatch(line)
        assert match is not None
        start, end = int(match[1], 16), int(match[2], 16) or 1 << 64
        part = ptdump(kernel, root, wanted=AddressRange(start, end - 1))
        found = [text for text in "".join(render_stream(part, "text")).splitlines() if LINE.fullmatch(text)]
        if start < KERNEL_HALF:
            continue  # the line that spans the hole between the halves
        assert found == [line] or "skipped" in line


def test_writable_and_executable_is_what_the_flags_say(kernel: Kernel) -> None:
    root = kernel_root(kernel)
    every = [
        (start, size)
        for batch in ptdump(kernel, root)
        for start, size, state, rights in zip(
            *(batch.values[key] for key in ("start", "size", "state", "effective"))
        )
        if state == "present" and "RW" in rights and "NX" not in rights
    ]
    only = [
        pair
        for batch in ptdump(kernel, root, only_wx=True)
        for pair in zip(batch.values["start"], batch.values["size"])
    ]
    assert only == every
