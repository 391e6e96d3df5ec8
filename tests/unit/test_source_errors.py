# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages if a source cannot be opened: one line for the error, one for the remedy, exit status 3."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Tuple

import pytest

from kvintro.cli import main
from kvintro.errors import NoSuchSource, NotADump, WrongVmcoreinfo
from kvintro.reports.diff import side_of_json
from kvintro.source import Source, debuginfo, live
from kvintro.source.files import open_file, read_bounded
from tests.conftest import VMCORES
from tests.synthetic import elf_core, vmcoreinfo

Complaint = Callable[..., Tuple[int, str, str]]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Run the command line; return the exit status, the line of the error and the line of the remedy."""

    def run(*arguments: str) -> Tuple[int, str, str]:
        code = main([*arguments, "layout"])
        out, err = capsys.readouterr()
        assert out == ""
        what, hint, *instead = err.splitlines()
        assert what.startswith("kvintro: ")
        assert hint.startswith("  hint: ")
        # After a missing right, the command that has that right.
        assert not instead or (len(instead) == 1 and "sudo" in hint and "sudo" in instead[0])
        return code, what[len("kvintro: ") :], hint[len("  hint: ") :]

    return run


def note() -> Any:
    return [("VMCOREINFO", 0, vmcoreinfo().encode())]


def test_no_such_file(complaint: Complaint, tmp_path: Path) -> None:
    code, what, _ = complaint("-c", str(tmp_path / "nowhere"))
    assert (code, what.endswith("no such file")) == (3, True)


def test_a_directory(complaint: Complaint, tmp_path: Path) -> None:
    assert complaint("-c", str(tmp_path))[:2] == (3, f"{tmp_path} is a directory")


def test_devices_and_pipes(complaint: Complaint, tmp_path: Path) -> None:
    for path in ("/dev/null", "/dev/zero"):
        assert complaint("-c", path) == (
            3,
            f"{path} is a device",
            "write its content to a file and name that",
        )
    os.mkfifo(tmp_path / "pipe")
    assert complaint("-c", str(tmp_path / "pipe"))[1].endswith("is a pipe")


@pytest.mark.parametrize("form", ["elf", "kdump", "lime", "avml"])
@pytest.mark.parametrize("content", [b"x" * 100, elf_core(notes=note()), b"KDUMP   " + bytes(5000)])
def test_a_format_that_it_is_not(complaint: Complaint, tmp_path: Path, form: str, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    if not content.startswith({"elf": b"\x7fELF", "kdump": b"KDUMP"}.get(form, b"none")):
        code, what, hint = complaint("-c", str(path), "--format-in", form)
        assert (code, what.endswith(f"does not have the format {form}"), "--format-in" in hint) == (
            3,
            True,
            True,
        )


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (b"", "is empty", "take or copy it again"),
        (b"\x90" * 1000, "is not a kernel dump", "ELF vmcores, kdumps"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 100, "is compressed with zstd", "damaged"),
        (b"\x1f\x8b" + b"x" * 100, "is compressed with gzip", "damaged"),
        (b"\xfd7zXZ\0" + b"x" * 100, "is compressed with xz", "damaged"),
        (b"\x7fELF\x02\x01\x01", "ends within the ELF header", "truncated"),
        (elf_core()[:70], "ends within the program headers", "truncated"),
        (elf_core(notes=note(), machine=258), "architecture is not supported: loongarch", "x86-64"),
        (
            b"KDUMP   ".ljust(272, b"\0")
            + b"loongarch64".ljust(156, b"\0")
            + struct.pack("<iiI", 4096, 1, 2).ljust(9000, b"\0"),
            "architecture is not supported: loongarch64",
            "x86-64",
        ),
        (elf_core(kind=2), "an ELF file, but not a core dump", "-s"),
        (
            b"\x7fELF\x01\x01\x01".ljust(18, b"\0") + b"\x28" + bytes(100),
            "32-bit ELF file, for arm",
            "64 bits",
        ),
        (elf_core(notes=note(), order=">"), "architecture is not supported: x86-64, big-endian", "x86-64"),
        (elf_core(notes=note(), order=">", machine=8), "architecture is not supported: mips", "x86-64"),
        (elf_core(notes=note(), machine=258), "architecture is not supported: loongarch", "x86-64"),
        (elf_core(notes=note(), machine=0x9026), "architecture is not supported: alpha", "x86-64"),
        (elf_core(notes=note(), machine=4711), "architecture is not supported: ELF machine 4711", "x86-64"),
        (b"\x7fELF\x02\x03\x01" + bytes(100), "invalid ELF header", "again"),
        (elf_core(notes=[("CORE", 3, bytes(136))]), "of a program, not of a kernel", "kdump"),
        (elf_core([(0, 0, bytes(4096))]), "has no VMCOREINFO note", "--vmcoreinfo"),
        (b"makedumpfile\0\0\0\0" + bytes(5000), "the flattened dump is truncated", "again"),
        (b"KDUMP   " + bytes(50), "truncated within its header", "again"),
    ],
    ids=lambda v: v[:24] if isinstance(v, str) else "",
)
def test_what_is_no_dump(complaint: Complaint, tmp_path: Path, content: bytes, what: str, hint: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    code, said, remedy = complaint("-c", str(path))
    assert code == 3
    assert what in said
    assert hint in remedy


def test_the_core_of_a_real_process(complaint: Complaint, tmp_path: Path) -> None:
    gcore = subprocess.run(
        [sys.executable, "-c", "import os, resource as r; r.setrlimit(r.RLIMIT_CORE, (-1, -1)); os.abort()"],
        cwd=tmp_path,
        check=False,
    )
    assert gcore.returncode < 0
    cores = list(tmp_path.glob("core*"))
    if not cores:
        pytest.skip("this host pipes core dumps away (kernel.core_pattern)")
    assert "core dump of a program" in complaint("-c", str(cores[0]))[1]


# diskdump_mod.h: max_mapnr; the length of the first note's contents.
@pytest.mark.parametrize("at, value", [(0x1B8, 0xFFFFFFFF), (0x106C, 0)])
def test_kdumps_that_libkdumpfile_refuses(complaint: Complaint, tmp_path: Path, at: int, value: int) -> None:
    """The message names the problem, not the library functions that found it."""
    path = tmp_path / "damaged"
    content = bytearray((VMCORES / "debian-6.12" / "core.kdump").read_bytes())
    struct.pack_into("<I", content, at, value)
    path.write_bytes(content)
    code, what, _ = complaint("-c", str(path))
    assert code == 3
    assert what.startswith(f"{path} cannot be read as kdump: ")
    assert "kdump_" not in what and "file #" not in what


# The high halves of offset_vmcoreinfo and offset_note.
@pytest.mark.parametrize("at", [0x1024, 0x1034])
@pytest.mark.parametrize("value", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_kdump_whose_notes_lie_elsewhere(complaint: Complaint, tmp_path: Path, at: int, value: int) -> None:
    path = tmp_path / "damaged"
    content = bytearray((VMCORES / "debian-6.12" / "core.kdump").read_bytes())
    struct.pack_into("<I", content, at, value)
    path.write_bytes(content)
    assert complaint("-c", str(path))[:2] == (3, f"{path}: its headers have an invalid offset for the notes")


def test_a_file_nobody_may_read(complaint: Complaint, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_core())
    if os.geteuid() == 0:
        # Root may read everything, so the refusal must be simulated.
        opened = os.open

        def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if not flags & os.O_PATH and str(path).startswith("/proc/self/fd/"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", refuse)
    else:
        path.chmod(0)
    code, what, hint = complaint("-c", str(path))
    assert (code, "permission denied" in what, "sudo" in hint) == (3, True, True)


def test_wrong_vmlinux(complaint: Complaint, tmp_path: Path) -> None:
    core, vmlinux = tmp_path / "core", tmp_path / "vmlinux"
    info = vmcoreinfo(more={"BUILD-ID": "aa" * 20}).encode()
    # The memory to compare the note with was excluded.
    core.write_bytes(elf_core([(0, 0, bytes(4096))], [("VMCOREINFO", 0, info)], left_out={0: 64 << 20}))
    vmlinux.write_bytes(elf_core(notes=[("GNU", 3, b"\xbb" * 20)], kind=2))
    code, what, hint = complaint("-c", str(core), "-s", str(vmlinux))
    assert code == 3
    assert "belongs to another kernel" in what
    assert "6.0.0-made-up" in hint
    vmlinux.write_bytes(b"MZ" * 100)
    assert "is not a vmlinux" in complaint("-c", str(core), "-s", str(vmlinux))[1]
    vmlinux.write_bytes(elf_core(notes=[("GNU", 3, b"\xaa" * 20)]))
    assert "is a dump, not a vmlinux" in complaint("-c", str(core), "-s", str(vmlinux))[1]
    vmlinux.write_bytes(elf_core(notes=[("GNU", 3, b"\xaa" * 20)], kind=2))
    assert "has no usable debuginfo" in complaint("-c", str(core), "-s", str(vmlinux))[1]


def test_btf_that_is_none(complaint: Complaint, tmp_path: Path) -> None:
    core, btf = tmp_path / "core", tmp_path / "btf"
    core.write_bytes(elf_core([(0, 0, bytes(4096))], note(), left_out={0: 64 << 20}))
    btf.write_bytes(b"not BTF" * 10)
    code, what, _ = complaint("-c", str(core), "--btf", str(btf))
    assert (code, "BTF" in what) == (3, True)
    code, what, _ = complaint("-c", str(core), "--types", "btf")
    assert (code, "BTF" in what) == (3, True)


def test_no_guest_at_the_socket(complaint: Complaint, tmp_path: Path) -> None:
    code, what, hint = complaint("--qemu", str(tmp_path / "socket"))
    assert (code, what.startswith("no QEMU answers"), "-qmp" in hint) == (3, True, True)


def test_no_kcore(complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KCORE", str(tmp_path / "kcore"))
    code, what, hint = complaint()
    assert (code, "CONFIG_PROC_KCORE" in what, "sample" in hint) == (3, True, True)


@pytest.mark.parametrize(
    ("uid", "lockdown", "what", "hint"),
    [
        (1000, "[none] integrity confidentiality", "by root only", "sudo"),
        (0, "[none] integrity confidentiality", "root may not read", "CAP_SYS_RAWIO"),
        (0, "none integrity [confidentiality]", "lockdown", "dump"),
    ],
)
def test_kcore_that_may_not_be_read(
    complaint: Complaint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    lockdown: str,
    what: str,
    hint: str,
) -> None:
    (tmp_path / "lockdown").write_text(lockdown)

    opened = open

    def refuse(path: str, *rest: Any, **more: Any) -> Any:
        if path == live.KCORE:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return opened(path, *rest, **more)

    monkeypatch.setattr(live, "_LOCKDOWN", str(tmp_path / "lockdown"))
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    code, said, remedy = complaint()
    assert code == 3
    assert what in said
    assert hint in remedy


@pytest.mark.parametrize("what", ["/dev/null", "an empty file", "a file that ends at once"])
def test_kcore_that_is_masked(
    complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As container runtimes mask it, with /dev/null or an empty file mounted over it."""
    path = what if what.startswith("/") else str(tmp_path / "kcore")
    if path != what:
        Path(path).write_bytes(b"")
    monkeypatch.setattr(live, "KCORE", path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    code, said, remedy = complaint()
    assert (code, said) == (3, f"{path} is masked, as in a container")
    assert "on the host" in remedy
    assert "--privileged" in remedy


@pytest.mark.parametrize(("there", "what"), [("none", "not mounted"), ("self", "subset=pid")])
def test_a_proc_without_kcore(
    complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, what: str
) -> None:
    exists = os.path.exists

    def found(path: Any) -> bool:
        if str(path) in ("/proc/self", "/proc/kallsyms"):
            return str(path).endswith(there)
        return exists(path)

    monkeypatch.setattr(live, "KCORE", str(tmp_path / "kcore"))
    monkeypatch.setattr(os.path, "exists", found)
    code, said, _ = complaint()
    assert (code, what in said) == (3, True)


@pytest.mark.parametrize("locked", [True, False])
def test_what_root_may_not_do_sudo_may_not_either(
    complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    """Lockdown and containers, with --sudo: the remedy is not "run it with --sudo"."""

    def refuse(path: str) -> Any:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "lockdown").write_text("none integrity [confidentiality]" if locked else "[none] integrity")
    (tmp_path / "kcore").write_text("x")
    monkeypatch.setattr(live, "KCORE", str(tmp_path / "kcore"))
    monkeypatch.setattr(live, "_LOCKDOWN", str(tmp_path / "lockdown"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(live, "open_by_sudo", refuse)
    code, said, remedy = complaint("--sudo")
    assert code == 3
    assert ("lockdown" if locked else "a container") in said
    assert "--sudo" not in remedy


def test_sudo_is_not_asked_for_what_is_not_there(
    complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KCORE", str(tmp_path / "kcore"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    code, what, _ = complaint("--sudo")
    assert code == 3
    assert "this kernel has no" in what


@pytest.mark.parametrize("where", ["no/such/directory", ".", "full"])
def test_where_nothing_can_be_written(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = "/dev/full" if where == "full" else str(tmp_path / where)
    assert main(["pte", "8000000003a12163", "-o", path]) == 3
    what, hint = capsys.readouterr().err.splitlines()
    assert what.startswith(f"kvintro: {path}: ")
    assert hint.startswith("  hint: ")


def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kvintro", "pte", "0"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "kvintro: standard output: No space left on device"


def test_another_architecture_live(complaint: Complaint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "loongarch64")
    assert "loongarch64" in complaint()[1]


@pytest.mark.parametrize(
    "arguments",
    [["-c", "x", "--qemu", "y", "layout"], ["--types", "dwarf", "layout"]],
)
def test_contradictions_are_usage_errors(arguments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("arguments", [["nonsense"], [], ["pages", "--by", "x"], ["--format", "x", "layout"]])
def test_usage(arguments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_is_too_much_names_the_commands_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["aliases", "1000", "2000"]) == 2
    what, hint = capsys.readouterr().err.splitlines()
    assert "2000" in what
    assert hint.endswith("kvintro aliases --help")


def test_hostile_names_come_out_inert(complaint: Complaint, tmp_path: Path) -> None:
    assert "\x1b" not in complaint("-c", str(tmp_path / "\x1b[31mred"))[1]


@pytest.mark.parametrize("at", range(0, 64, 2))
def test_damaged_elf_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int) -> None:
    """With each pair of header bytes set to ones, the file is opened or refused, without a traceback."""
    data = bytearray(elf_core([(0, 0, bytes(4096))], note()))
    struct.pack_into("<H", data, at, 0xFFFF)
    path = tmp_path / "core"
    path.write_bytes(data)
    assert main(["-c", str(path), "layout"]) in (0, 3, 4)
    assert "internal error" not in capsys.readouterr().err


#: Ways to name a file, with FILE for it and CORE for a valid dump.
NAMED = {
    "-c": ("-c", "FILE", "layout"),
    "-c, a second part": ("-c", "CORE", "-c", "FILE", "layout"),
    "--vmcoreinfo": ("-c", "CORE", "--vmcoreinfo", "FILE", "layout"),
    "--btf": ("-c", "CORE", "--btf", "FILE", "layout"),
    "-s": ("-c", "CORE", "-s", "FILE", "layout"),
    "diff A": ("diff", "FILE", "CORE"),
    "diff B": ("diff", "CORE", "FILE"),
}


def special(kind: str, directory: Path) -> str:
    """The path of something that is not a regular file."""
    path = directory / "special"
    if kind in ("fifo", "link to a fifo"):
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "directory":
        path.mkdir()
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    if kind.startswith("link to"):
        (directory / "link").symlink_to(path)
        path = directory / "link"
    return kind if kind.startswith("/") else str(path)


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("fifo", "is a pipe"),
        ("link to a fifo", "is a pipe"),
        ("socket", "is a socket"),
        ("/dev/zero", "is a device"),
        ("/dev/null", "is a device"),
        ("/dev/full", "is a device"),
        ("/dev/tty", "is a device"),
        ("directory", "is a directory"),
        ("empty", "is empty"),
        ("/proc/self/mem", "is empty"),
        ("/proc/kmsg", ""),
        ("sparse", ""),
    ],
)
def test_what_is_no_file_of_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str, kind: str, what: str
) -> None:
    """Refused at once, in one line, however it is named: nothing hangs or is read endlessly."""
    core = tmp_path / "core"
    core.write_bytes(elf_core([(0, 0, bytes(4096))], note(), left_out={0: 64 << 20}))
    path = special(kind, tmp_path)
    words = [{"FILE": path, "CORE": str(core)}.get(word, word) for word in NAMED[named]]
    with ended_within(seconds=60):
        code = main(words)
    out, err = capsys.readouterr()
    # Two files that are not parts of one dump are a usage error, if both can be opened.
    assert (code, out) in ((3, ""), (2, "") if kind == "sparse" else ())
    assert len(err.splitlines()) == 2
    assert "internal error" not in err
    if what:
        assert f"{path} {what}" in err


@contextlib.contextmanager
def ended_within(seconds: int) -> Iterator[None]:
    """Make a hanging test fail, so that it does not block the others."""

    def too_long(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_pipe_in_place_of_the_file_just_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of the directory can exchange the file, so the checked file must be the opened one."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    opened = os.open

    def exchange(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        descriptor = opened(name, flags, *rest, **more)
        if str(name) == str(path):
            path.unlink()
            os.mkfifo(path)
        return descriptor

    monkeypatch.setattr(os, "open", exchange)
    with ended_within(60), open_file(str(path)) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("limit", [0, 10, 11])
def test_files_are_read_to_their_limit(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with open_file(str(path)) as file:
        if limit >= 10:
            assert read_bounded(file, str(path), "--btf", limit) == b"0123456789"
            return
        # The same applies to a file that grows or has a false size.
        monkeypatch.setattr(os, "fstat", lambda _: os.stat_result([0] * 10))
        with pytest.raises(NoSuchSource):
            read_bounded(file, str(path), "--btf", limit)


@pytest.mark.parametrize("part", ["[[]]", '{"":{}}', "[0]", "{}"])
def test_a_saved_report_of_nothing_but_lists(tmp_path: Path, part: str) -> None:
    """Lists and objects take up to fifty times more memory in Python than in JSON; these are not created."""
    saved = tmp_path / "saved.json"
    saved.write_text('{"schema": "kvintro.layout/1", "regions": [' + ",".join([part] * (1 << 20)) + "]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "loads", lambda text: pytest.fail("it was parsed"))
        with pytest.raises(NotADump, match="too many rows"):
            side_of_json(str(saved))


def test_symbols_that_lie_elsewhere_than_vmcoreinfo_says() -> None:
    """drgn moves debuginfo's symbols by KERNELOFFSET; nothing else depends on that line."""
    symbols = {"_stext": 0xFFFFFFFF83000000}

    class Program:
        def symbol(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(address=symbols[name])

    source = Source(Program(), "core", "dump", "ELF", vmcoreinfo={"SYMBOL(_stext)": "ffffffff83000000"})
    debuginfo._check_place(source)
    symbols["_stext"] += 2 << 20
    with pytest.raises(WrongVmcoreinfo) as caught:
        debuginfo._check_place(source)
    assert "KERNELOFFSET" in caught.value.what
    assert "without -s" in caught.value.remedy
