# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands on page tables, from the command line, on a core that is small enough to check by hand."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from kvintro.cli import main
from kvintro.paging import Tree
from kvintro.queries.ptdump import dump_of, lines
from kvintro.queries.roots import kernel_root
from kvintro.queries.translate import Input, Translator
from kvintro.render import render_stream
from kvintro.reports.ptdump import ptdump
from kvintro.reports.translate import translate_stream
from tests.synthetic import Memory, elf_core, kernel_of, vmcoreinfo

DIRECT = 0xFFFF_8880_0000_0000
VMALLOC = 0xFFFF_C900_0000_0000
VMEMMAP = 0xFFFF_EA00_0000_0000
IMAGE = 0xFFFF_FFFF_8100_0000


def machine() -> Memory:
    """16 MB of RAM at physical 0: direct map in 4K pages up to 4 MB, some of them also mapped elsewhere."""
    memory = Memory()
    for physical in range(0, 4 << 20, 4096):
        if physical != 0x3000:  # a page that was taken out, as memfd_secret does
            memory.map(DIRECT + physical, physical)
    memory.map(VMALLOC, 0x5000)
    memory.map(VMALLOC + 0x1000, 0x7000)
    memory.map(VMALLOC + 0x20_0000, 0x20_0000, 2)
    for page in range(16):
        memory.map(VMEMMAP + page * 4096, 0x40_0000 + page * 4096)
    memory.map(IMAGE, 0x100_0000, 2, 0x61)
    memory.map(0xFFFFFE0000000000, 0x9000)  # cpu_entry_area, which every kernel has
    for physical in range(0, (1 << 20) + 0x2000, 4096):
        memory.pages.setdefault(physical, bytearray(4096))
    return memory


INFO = {"NUMBER(VMALLOC_START)": f"0x{VMALLOC:x}", "SYMBOL(vmemmap)": f"{VMEMMAP:x}"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The machine as an ELF core."""
    memory = machine()
    info = vmcoreinfo(more=INFO)
    note = [("VMCOREINFO", 0, info.encode())]
    segments = [(0, address, bytes(data)) for address, data in sorted(memory.pages.items())]
    path = tmp_path_factory.mktemp("core") / "core"
    path.write_bytes(elf_core(segments, note))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Tuple[int, str]:
    code = main(list(arguments))
    return code, capsys.readouterr().out


def results(
    capsys: pytest.CaptureFixture[str], made: str, *arguments: str
) -> Tuple[int, List[Dict[str, Any]]]:
    code, out = run(capsys, "--json", "-c", made, *arguments)
    document = json.loads(out)
    assert document["schema"] == "kvintro.translate/1"
    return code, document["results"]


def test_the_fields_of_an_answer(capsys: pytest.CaptureFixture[str], made: str) -> None:
    code, (found,) = results(capsys, made, "translate", f"{VMALLOC + 0x1234:x}")
    assert code == 0
    walk = found.pop("walk")
    assert [step["level"] for step in walk] == ["pgd", "pud", "pmd", "pte"]
    assert walk[-1]["value"] == "0x0000000000007063"
    assert walk[-1]["flags"] == ["PRESENT", "RW", "ACCESSED", "DIRTY"]
    assert int(walk[0]["entry_address"], 16) == 0x10_0000 + 8 * (VMALLOC >> 39 & 511)
    assert {
        key: found[key] for key in ("state", "region", "virtual", "physical", "pfn", "page", "page_size")
    } == {
        "state": "mapped",
        "region": "vmalloc",
        "virtual": f"0x{VMALLOC + 0x1234:016x}",
        "physical": "0x0000000000007234",
        "pfn": 7,
        "page": f"0x{VMEMMAP + 7 * 64:016x}",
        "page_size": 4096,
    }
    assert (found["method"], found["taken_as"], found["input"]) == (
        "walk",
        "virtual",
        f"{VMALLOC + 0x1234:x}",
    )


@pytest.mark.parametrize(
    ("arguments", "taken_as", "virtual", "physical"),
    [
        (("translate", "7234"), "physical", DIRECT + 0x7234, 0x7234),
        (("ptov", "7234"), "physical", DIRECT + 0x7234, 0x7234),
        (("translate", "--from", "pfn", "7"), "pfn", DIRECT + 0x7000, 0x7000),
        (("translate", f"{VMEMMAP + 7 * 64:x}"), "page", DIRECT + 0x7000, 0x7000),
        (("translate", f"0x{VMEMMAP + 7 * 64 + 8:X}"), "page", DIRECT + 0x7000, 0x7000),
        (("translate", "--from", "virtual", f"{VMEMMAP + 8:x}"), "virtual", VMEMMAP + 8, 0x40_0008),
        (("vtop", f"{VMEMMAP + 8:x}"), "virtual", VMEMMAP + 8, 0x40_0008),
        (("vtop", f"{DIRECT + 5:x}"), "virtual", DIRECT + 5, 5),
        (("vtop", f"{IMAGE + 0x12345:x}"), "virtual", IMAGE + 0x12345, 0x101_2345),
        (("vtop", f"{VMALLOC + 0x20_1234:x}"), "virtual", VMALLOC + 0x20_1234, 0x20_1234),
    ],
)
def test_what_numbers_are_taken_for(
    capsys: pytest.CaptureFixture[str],
    made: str,
    arguments: Tuple[str, ...],
    taken_as: str,
    virtual: int,
    physical: int,
) -> None:
    code, (found,) = results(capsys, made, *arguments)
    assert (code, found["taken_as"], found["state"]) == (0, taken_as, "mapped")
    assert (int(found["virtual"], 16), int(found["physical"], 16)) == (virtual, physical)


@pytest.mark.parametrize(
    ("arguments", "state", "physical"),
    [
        (("translate", f"{VMALLOC + 0x5000:x}"), "unmapped", None),
        (("translate", f"{DIRECT + 0x3000:x}"), "unmapped", None),
        # The page exists, but the kernel has no address for it.
        (("translate", "3000"), "unmapped", "0x0000000000003000"),
        (("translate", "900000000000000"), "non-canonical", None),
        (("vtop", "1000"), "unmapped", None),
        (("translate", f"{VMEMMAP + 0x10_0000:x}"), "unmapped", None),
        (("translate", "--from", "pfn", "10000000000000"), "unmapped", None),
        (("translate", "ffffffffffffffff"), "unmapped", None),
    ],
)
def test_what_is_not_mapped(
    capsys: pytest.CaptureFixture[str], made: str, arguments: Tuple[str, ...], state: str, physical: Any
) -> None:
    code, (found,) = results(capsys, made, *arguments)
    assert (code, found["state"], found["physical"]) == (1, state, physical)
    assert found["virtual"] is None or found["taken_as"] == "virtual"


@pytest.mark.parametrize(
    "arguments",
    [
        ("translate", "xyz"),
        ("translate", "12345678901234567"),
        ("translate", "init_task"),
        ("translate", "-", "1000"),
        ("translate", "--from", "page", "1000"),
        ("translate", "--user-half", "1000"),
        ("ptdump", "--range", "1-0-3"),
        ("ptdump", "--range", "2000-1000"),
        ("ptdump", "--range", "nowhere"),
        ("ptdump", "--root", "efi", "--pid", "1"),
        ("pte", "--level", "p5d", "1"),
        ("pte", "10000000000000000"),
    ],
)
def test_nonsense(capsys: pytest.CaptureFixture[str], made: str, arguments: Tuple[str, ...]) -> None:
    assert main(["-c", made, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kvintro: ")
    assert "\n  hint: " in err


def kvintro(made: str, *arguments: str, stdin: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "kvintro", "-c", made, *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )


def test_a_list_on_standard_input(made: str) -> None:
    texts = [f"{VMALLOC:x}", "7234", f"0x{DIRECT + 0x3000:X}", "nonsense%", f"{VMEMMAP + 64:x}"]
    done = kvintro(made, "translate", "-", stdin="\n".join(texts))
    assert done.returncode == 1
    answers = done.stdout.splitlines()
    assert len([line for line in answers if not line.startswith("#")]) == len(texts)
    assert answers[-1].split()[1:4] == [f"{DIRECT + 0x1000:016x}", f"{0x1000:016x}", "1"]
    document = json.loads(kvintro(made, "translate", "--json", "-", stdin="\n".join(texts)).stdout)
    assert [found["input"] for found in document["results"]] == texts
    assert [found["state"] for found in document["results"]] == [
        "mapped", "mapped", "unmapped", "invalid", "mapped",
    ]  # fmt: skip
    rows = list(
        csv.DictReader(io.StringIO(kvintro(made, "translate", "--format", "csv", "-", stdin="7234").stdout))
    )
    assert rows[0]["virtual"] == f"0x{DIRECT + 0x7234:016x}"


def test_an_empty_list(made: str) -> None:
    done = kvintro(made, "translate", "--json", "-", stdin="")
    assert done.returncode == 0
    assert json.loads(done.stdout)["results"] == []


def test_answers_come_before_the_list_ends(made: str) -> None:
    command = [sys.executable, "-m", "kvintro", "-c", made, "vtop", "--types", "none", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for address in (VMALLOC, VMALLOC + 0x1000):
            process.stdin.write(f"{address:x}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            while line.startswith("#"):
                line = process.stdout.readline()
            assert line.startswith(f"{address:x} ")
        process.stdin.close()


def test_a_reader_that_goes_away_is_no_error(made: str) -> None:
    lines_of_input = "".join(f"{VMALLOC:x}\n" for _ in range(200_000))
    command = f"{sys.executable} -m kvintro -c {made} vtop - | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        input=lines_of_input,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_pte_needs_no_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "pte", "8000000003a12163", "0")
    assert code == 0
    assert "0000000003a12000" in out
    assert "no source was named" in out
    code, out = run(capsys, "--json", "pte", "80000000076000e3", "--level", "pmd")
    document = json.loads(out)
    assert document["kernel"] is None
    (entry,) = document["entries"]
    assert (entry["level"], entry["physical"], entry["page_size"]) == ("pmd", "0x0000000007600000", 2 << 20)


def test_pte_takes_levels_by_number(capsys: pytest.CaptureFixture[str], made: str) -> None:
    for name, number in (("pte", "1"), ("pmd", "2"), ("pud", "3"), ("pgd", "4"), ("p4d", "4")):
        by_name = run(capsys, "-c", made, "pte", "--level", name, "1000e7")
        assert by_name == run(capsys, "-c", made, "pte", "--level", number, "1000e7")


def test_pte_honours_the_address_mask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    memory = machine()
    info = vmcoreinfo(more={**INFO, "NUMBER(sme_mask)": str(1 << 47)})
    path = tmp_path / "core"
    segments = [(0, address, bytes(data)) for address, data in sorted(memory.pages.items())]
    path.write_bytes(elf_core(segments, [("VMCOREINFO", 0, info.encode())]))
    _, out = run(capsys, "--json", "-c", str(path), "pte", f"{0x5063 | 1 << 47:x}")
    (entry,) = json.loads(out)["entries"]
    assert entry["physical"] == "0x0000000000005000"
    assert "ENC" in entry["flags"]


def test_ptdump_line_by_line(capsys: pytest.CaptureFixture[str], made: str) -> None:
    """The kernel's output for the machine, derived by hand from note_page() and printk_prot()."""
    _, out = run(capsys, "-c", made, "ptdump", "--range", "ffffc90000000000-ffffc90000600000")
    text = [line for line in out.splitlines() if not line.startswith("#")]
    assert text == [
        "---[ vmalloc() Area ]---",
        "0xffffc90000000000-0xffffc90000002000           8K     RW                     x  pte",
        "0xffffc90000002000-0xffffc90000200000        2040K                               pte",
        "0xffffc90000200000-0xffffc90000400000           2M     RW         PSE         x  pmd",
        "0xffffc90000400000-0xffffc90000600000           2M                               pmd",
    ]


def test_ptdump_starts_and_ends_as_the_kernels(capsys: pytest.CaptureFixture[str], made: str) -> None:
    _, out = run(capsys, "-c", made, "ptdump")
    text = [line for line in out.splitlines() if not line.startswith("#")]
    # Entries between the halves are not read: the first line spans the hole up to the second half.
    assert text[:3] == [
        "---[ User Space ]---",
        "0x0000000000000000-0xffff880000000000    16777096T                               pgd",
        "---[ Kernel Space ]---",
    ]
    assert text[-1].split()[0].endswith("-0x0000000000000000")


def test_ptdump_of_the_last_byte(capsys: pytest.CaptureFixture[str], made: str) -> None:
    _, out = run(capsys, "-c", made, "ptdump", "--range", "ffffffffffffffff-0")
    (line,) = [line for line in out.splitlines() if not line.startswith(("#", "---"))]
    assert line.split()[:2] == ["0xffffffffffffffff-0x0000000000000000", "1B"]


def test_ptdump_json(capsys: pytest.CaptureFixture[str], made: str) -> None:
    code, out = run(capsys, "-c", made, "--json", "ptdump", "--wx")
    document = json.loads(out)
    assert document["schema"] == "kvintro.ptdump/1"
    # The made-up kernel does not set NX anywhere, and its image is read-only.
    assert all("RW" in found["effective"] and "NX" not in found["effective"] for found in document["ranges"])
    first = next(found for found in document["ranges"] if found["marker"] == "vmalloc() Area")
    assert first == {
        "start": f"0x{VMALLOC:016x}",
        "end": f"0x{VMALLOC + 0x1FFF:016x}",
        "size": 0x2000,
        "level": "pte",
        "state": "present",
        "flags": ["RW"],
        "effective": ["RW"],
        "marker": "vmalloc() Area",
    }
    assert code == 0


def test_ptdump_of_tables_that_share_wildly_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "REPEATED_LIMIT", 1 << 14)
    memory = machine()
    # Half of the entries of each table point to the only table of the next level.
    shared = (0x80000, 0x81000, 0x82000)
    for index in range(256, 511):
        memory.entry(memory.root + 8 * index, shared[0] | 0x63)
    for table, below in zip(shared, (*shared[1:], 0x5000)):
        for index in range(0, 512, 2):
            memory.entry(table + 8 * index, below | 0x63)
    kernel = kernel_of(memory, vmcoreinfo(more=INFO))
    count = 0
    partial = False
    for batch in ptdump(kernel, kernel_root(kernel)):
        count += len(batch.values["start"])
        partial |= batch.partial
    assert 1 << 10 < count < 1 << 18
    assert partial


def test_markers_come_one_with_each_entry() -> None:
    """Two headings at one address take two entries, as in the kernel's loop."""
    kernel = kernel_of(machine(), vmcoreinfo(more=INFO))
    dump = dump_of(kernel, kernel_root(kernel))
    dump.headings[:] = [(0, "first"), (VMALLOC, "second"), (VMALLOC, "third")]
    found = list(lines(dump, dump.tree()))
    assert [(line.start, line.end) for line in found if line.marker == "second"] == [
        (VMALLOC, VMALLOC + 0x1000)
    ]
    assert next(line.start for line in found if line.marker == "third") == VMALLOC + 0x1000


def test_an_answer_whose_tables_are_gone_has_no_physical_address() -> None:
    memory = machine()
    kernel = kernel_of(memory, vmcoreinfo(more=INFO))
    table = kernel.walk(DIRECT).steps[-1].entry_address & ~0xFFF
    del memory.pages[table]
    translator = Translator(kernel_of(memory, vmcoreinfo(more=INFO)))
    for asked in (Input("", DIRECT + 0x5000, "virtual"), Input("", 0x5000, "physical")):
        found = translator.translate(asked)
        assert found.state == "not-in-dump"
        assert found.virtual is None or found.physical is None
        assert found.note is not None


def test_streams_end_in_whole_documents() -> None:
    kernel = kernel_of(machine(), vmcoreinfo(more=INFO))
    for form in ("json", "csv", "text"):
        assert "".join(render_stream(ptdump(kernel, kernel_root(kernel)), form)).endswith("\n")


def test_without_a_direct_map_nothing_is_called_unmapped() -> None:
    """Unreadable tables do not show its place; a list gives the same as a single answer."""
    memory = machine()
    kernel = kernel_of(memory, vmcoreinfo(more=INFO))
    for index in range(256, 512):
        entry = int.from_bytes(memory.read(memory.root + 8 * index, 8), "little")
        memory.pages.pop(entry & ~0xFFF, None)
    kernel = kernel_of(memory, vmcoreinfo(more=INFO))
    translator = Translator(kernel)
    found = translator.translate(translator.parse("1000"))
    assert (found.state, found.virtual) == ("not-in-dump", None)
    (batch,) = translate_stream(kernel, translator, [["1000"]])
    assert batch.values["state"] == ["not-in-dump"]
    assert batch.values["virtual"] == [None]
    assert batch.partial
