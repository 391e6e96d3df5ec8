# SPDX-License-Identifier: LGPL-2.1-or-later
"""Output never replaces a file that is read, and is written to a file completely or not at all."""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List, Sequence

import pytest

from kvintro import output
from kvintro.cli import main
from kvintro.commands import InputPath, command_names, load_command
from kvintro.errors import NotWritten, UsageError
from kvintro.output import written_file
from kvintro.parser import make_parser
from tests.conftest import ROOT
from tests.synthetic import START_KERNEL_MAP, Memory, elf_core, vmcoreinfo

CONTENT = b"what cannot be taken again\n" * 1000
PTE = ["pte", "8000000003a12163"]
NOBODY = 65534
SAMPLE = ROOT / "vmcores/debian-6.12/core.kdump"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")


@pytest.fixture()
def dump(tmp_path: Path) -> Path:
    """A file that must not change."""
    path = tmp_path / "vmcore"
    path.write_bytes(CONTENT)
    return path


def run(*arguments: str, shell: str = "", **options: Any) -> "subprocess.CompletedProcess[str]":
    """The command line in a separate process; ``shell`` is appended to it."""
    words = [sys.executable, "-m", "kvintro", *arguments]
    if shell:
        words = ["bash", "-c", f'"$0" "$@" {shell}', *words]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def _ways(dump: Path) -> Iterator[str]:
    """Different paths to the same file."""
    directory = dump.parent
    yield str(dump)
    yield os.path.relpath(dump)
    yield str(directory / "." / ".." / directory.name / dump.name)
    (directory / "symlink").symlink_to(dump)
    yield str(directory / "symlink")
    (directory / "chain").symlink_to("symlink")
    yield str(directory / "chain")
    os.link(dump, directory / "hard link")
    yield str(directory / "hard link")
    (directory / "again").symlink_to(directory)
    yield str(directory / "again" / dump.name)
    yield f"/proc/self/cwd/{os.path.relpath(dump)}"


#: Arguments that name a file to read, with F for the file.
READ = [
    ["-c", "F", "layout"],
    ["-c", "other", "-c", "F", "layout"],
    ["-c", "F", "ptdump"],
    ["-c", "F", "report"],
    ["-c", "F", "--json", "info"],
    ["-c", "F", "--format", "svg", "layout"],
    ["-c", "other", "-s", "F", "layout"],
    ["-c", "other", "--btf", "F", "layout"],
    ["-c", "other", "--vmcoreinfo", "F", "layout"],
    ["diff", "F", "other"],
    ["diff", "other", "F"],
    ["diff", "-c", "other", "F"],
    ["-c", "other", "shell", "F"],
]


@pytest.mark.parametrize("line", READ, ids=" ".join)
def test_no_output_onto_an_input(line: Sequence[str], dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = set(os.listdir(dump.parent))
    for way in _ways(dump):
        for read, written in ((str(dump), way), (way, str(dump))):
            words = [read if word == "F" else word for word in line]
            assert main(["-o", written, *words]) == 2
            assert f"-o {written} would overwrite {read}, which is being read" in capsys.readouterr().err
            assert dump.read_bytes() == CONTENT
    assert set(os.listdir(dump.parent)) - others == {"symlink", "chain", "hard link", "again"}


def test_no_output_onto_a_descriptor_of_an_input(dump: Path) -> None:
    for shell in ('-o /dev/fd/3 3<>"$2"', '-o /proc/self/fd/3 3>>"$2"'):
        found = run("-c", str(dump), "layout", shell=shell.replace("$2", str(dump)))
        assert found.returncode == 2
        assert "which is being read" in found.stderr
        assert dump.read_bytes() == CONTENT


@needs_root
def test_no_output_onto_a_bind_mount_of_an_input(dump: Path) -> None:
    mounted = dump.parent / "mounted"
    mounted.touch()
    command = f"mount --bind {dump} {mounted} && {sys.executable} -m kvintro -c {dump} layout -o {mounted}"
    found = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False
    )
    if "unshare" in found.stderr or "mount:" in found.stderr:
        pytest.skip("mounting is not allowed here")
    assert found.returncode == 2
    assert dump.read_bytes() == CONTENT


def test_no_output_onto_what_was_found(dump: Path) -> None:
    """The command line does not name it, but the process has it open or mapped."""
    args = argparse.Namespace(output=str(dump))
    output.refuse_inputs(args)
    with open(dump, "rb"), pytest.raises(UsageError, match="which is being read"):
        output.refuse_inputs(args)
    with open(dump, "r+b"):  # as for output
        output.refuse_inputs(args)
    import mmap

    with open(dump, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped, pytest.raises(UsageError, match="which is being read"):
        output.refuse_inputs(args)


def test_no_output_onto_the_list_that_is_read(dump: Path) -> None:
    with open(dump, "rb") as file:
        found = run("-c", "none", "translate", "-", "-o", str(dump), stdin=file)
    assert found.returncode == 2
    assert dump.read_bytes() == CONTENT


def test_no_output_onto_files_of_the_kernel() -> None:
    for path in ("/proc/kcore", "/proc/kallsyms", "/sys/kernel/btf/vmlinux", "/proc/self/status"):
        # Containers bind /dev/null over some of them.
        if os.path.isfile(path):
            with pytest.raises(UsageError, match="file of the kernel"):
                output.refuse_inputs(argparse.Namespace(output=path))


def test_a_redirection_onto_the_input_is_named(dump: Path) -> None:
    found = run("-c", str(dump), "layout", shell=f'>> "{dump}"')
    assert found.returncode == 2
    assert f"standard output is {dump}, which is being read" in found.stderr
    assert dump.read_bytes() == CONTENT
    found = run("-c", str(dump), "layout", shell=f'2>> "{dump}"')
    assert found.returncode == 2
    assert f"standard error is {dump}, which is being read" in found.stdout
    assert dump.read_bytes() == CONTENT
    assert run("-c", str(dump), "layout", shell=f'>> "{dump}" 2>&1').returncode == 2
    assert dump.read_bytes() == CONTENT
    found = run("-c", str(dump), "layout", shell=f'> "{dump}"')
    assert found.returncode == 2
    assert "the shell emptied the file" in found.stderr


def test_every_file_that_is_read_is_declared() -> None:
    """Arguments that look like files in the help are InputPaths, so that no new option is forgotten."""
    parsers: List[argparse.ArgumentParser] = [make_parser("layout")]
    for name in command_names():
        parser = argparse.ArgumentParser()
        load_command(name).configure(parser)
        parsers.append(parser)
    names = {"FILE", "CORE", "VMLINUX", "A", "B", "SCRIPT", "DUMP", "PATH"}
    declared = set()
    for parser in parsers:
        for action in parser._actions:
            if action.metavar in names and action.dest != "output":
                assert action.type is InputPath, action.dest
                declared.add(action.dest)
    assert declared == {"core", "symbols", "btf", "vmcoreinfo", "a", "b", "script", "dumps"}


def test_old_content_is_there_until_the_new_is_complete(dump: Path) -> None:
    before = os.listdir(dump.parent)
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), written_file(str(dump)) as file:
            file.write("half of it")
            assert dump.read_bytes() == CONTENT
            raise error
        assert dump.read_bytes() == CONTENT
        assert os.listdir(dump.parent) == before
    with written_file(str(dump)) as file:
        file.write("all of it ≥\n")
    assert dump.read_text(encoding="utf-8") == "all of it ≥\n"
    assert os.listdir(dump.parent) == before


@pytest.fixture(params=["unnamed", "named"])
def temporary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of temporary file: file systems without O_TMPFILE answer like the patched one here."""
    if request.param == "named":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    return str(request.param)


def test_what_is_kept_of_the_old_file(temporary: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    old = os.umask(0o027)
    try:
        with written_file(str(target)) as file:
            file.write("1")
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        target.chmod(0o604)
        with written_file(str(target)) as file:
            file.write("2")
            hidden = [name for name in os.listdir(tmp_path) if name.startswith(".kvintro-")]
            assert len(hidden) == (temporary == "named")
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == 0o604
    assert target.read_text() == "2"
    assert os.listdir(tmp_path) == ["target"]


def test_nothing_is_left_behind(temporary: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), written_file(str(tmp_path / "new")) as file:
        file.write("half")
        raise ValueError("no")
    assert os.listdir(tmp_path) == []


@needs_root
def test_the_owner_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    os.chown(target, NOBODY, 12345)
    with written_file(str(target)) as file:
        file.write("1")
    assert (target.stat().st_uid, target.stat().st_gid) == (NOBODY, 12345)


def test_a_hyphen_is_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvintro", "pte", "8000000000000163"]
    plain = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=tmp_path).stdout
    found = subprocess.run([*command, "-o", "-"], check=True, stdout=subprocess.PIPE, cwd=tmp_path).stdout
    assert found == plain != b""
    assert not list(tmp_path.iterdir())


def test_the_prompt_writes_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    assert main(["-o", str(path), "shell", "-e", "print(1)"]) == 2
    assert "shell writes no file" in capsys.readouterr().err
    assert not path.exists()


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere/target")
    for text in ("new", "old"):
        with written_file(str(link)) as file:
            file.write(text)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere/target").read_text() == text
    (tmp_path / "elsewhere/target").unlink()
    with pytest.raises(ValueError, match="no"), written_file(str(link)):
        raise ValueError("no")
    assert os.listdir(tmp_path / "elsewhere") == []
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="symbolic link"), written_file(str(loop)):
        pass


@needs_root
def test_without_proc(tmp_path: Path) -> None:
    target = tmp_path / "target"
    link = tmp_path / "link"
    link.symlink_to("target")
    command = f"mount -t tmpfs none /proc && {sys.executable} -m kvintro {' '.join(PTE)} -o {link}"
    for _ in range(2):
        found = subprocess.run(
            ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False
        )
        if "unshare" in found.stderr or "mount:" in found.stderr:
            pytest.skip("mounting is not allowed here")
        assert found.returncode == 0, found.stderr
        assert target.read_text().startswith("8000000003a12163")
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample dump is not there")
def test_a_session_does_not_write_onto_its_dump(tmp_path: Path) -> None:
    dump = tmp_path / "vmcore"
    shutil.copy(SAMPLE, dump)
    os.link(dump, tmp_path / "hard link")
    for line in (f"%kvintro layout -o '{tmp_path}/hard link'", f"%kvintro layout >> {dump}"):
        found = run("-c", str(dump), "shell", "-e", line)
        assert found.returncode == 1
        assert "which is being read" in found.stderr
        assert filecmp.cmp(SAMPLE, dump, shallow=False)


def test_what_is_no_file_is_written_directly(tmp_path: Path) -> None:
    assert main([*PTE, "-o", "/dev/null"]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        assert main([*PTE, "-o", str(fifo)]) == 0
        assert reader.communicate()[0].startswith(b"8000000003a12163")
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        assert run(*PTE, "-o", name).stdout.startswith("8000000003a12163")
    # Earlier content remains.
    log = tmp_path / "log"
    subprocess.run(
        [
            "bash",
            "-c",
            f'(echo before; {sys.executable} -m kvintro {" ".join(PTE)} -o /dev/stdout; echo after) > "$0"',
            log,
        ],
        check=True,
    )
    lines = log.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert len(lines) > 3


def test_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (str(tmp_path), f"{tmp_path}/new/", f"{tmp_path}/no/file", "/dev/fd/99", "a" * 300):
        assert main([*PTE, "-o", path]) == 3
        said = capsys.readouterr().err
        assert said.startswith(f"kvintro: {path}: "), said
        assert said.count("\n") == 2
        assert "sudo" not in said  # the error is not about rights
    assert main([*PTE, "-o", ""]) == 2
    assert "-o needs the name of a file" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_no_block_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stat, "S_ISBLK", lambda mode: True)  # there may be no block device here
    with pytest.raises(NotWritten, match="block device"), written_file("/dev/null"):
        pass


def _as_nobody(path: str, limit: str = "") -> "subprocess.CompletedProcess[str]":
    # Python's installation may be readable only by root, so modules are imported before.
    program = f"""
import os, resource, sys
from kvintro.cli import main
main({PTE!r} + ["-o", "/dev/null"])
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
{limit}
sys.exit(main({PTE!r} + ["-o", {path!r}]))
"""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/"
    )


@pytest.fixture()
def shared() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="kvintro-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o1777], ids=["read-only", "sticky"])
def test_a_file_in_a_directory_that_is_not_ours(shared: Path, mode: int) -> None:
    """It cannot be replaced, so it is overwritten once the output is complete and the disk has space."""
    target = shared / "target"
    for old in (b"", b"x" * 10000):
        target.write_bytes(old)
        target.chmod(0o666)
        inode = target.stat().st_ino
        shared.chmod(mode)
        found = _as_nobody(str(target))
        assert found.returncode == 0, found.stderr
        assert target.read_text().startswith("8000000003a12163")
        assert "xxx" not in target.read_text()
        assert target.stat().st_ino == inode
        assert target.stat().st_uid == 0
        assert os.listdir(shared) == ["target"]


@needs_root
def test_a_full_disk_leaves_what_cannot_be_replaced(shared: Path) -> None:
    target = shared / "target"
    target.write_bytes(b"old")
    target.chmod(0o666)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))"
    found = _as_nobody(str(target), limit)
    assert found.returncode == 3
    assert target.read_bytes() == b"old"


@needs_root
def test_links_of_others_in_sticky_directories_are_not_followed(shared: Path) -> None:
    """As the kernel enforces for every program (fs.protected_symlinks)."""
    if Path("/proc/sys/fs/protected_symlinks").read_text().strip() != "1":
        pytest.skip("fs.protected_symlinks is off")
    shared.chmod(0o1777)
    (shared / "victim").write_text("old")
    link = shared / "link"
    for target in ("victim", "missing"):
        link.symlink_to(target)
        os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
        with pytest.raises(PermissionError), written_file(str(link)):
            pass
        link.unlink()
    assert (shared / "victim").read_text() == "old"
    assert os.listdir(shared) == ["victim"]


def test_a_full_disk_leaves_the_old_file(dump: Path) -> None:
    found = run(*PTE, shell=f'-o "{dump}"', preexec_fn=_small_files)
    assert found.returncode == 3
    assert "File too large" in found.stderr
    assert dump.read_bytes() == CONTENT
    assert os.listdir(dump.parent) == [dump.name]


def _small_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_leaves_the_old_file(number: int, dump: Path, tmp_path: Path) -> None:
    """It ends in the middle of a stream."""
    source = tmp_path / "made-up"
    memory = Memory(4)
    for page in range(4):
        memory.map(START_KERNEL_MAP + page * 4096, page * 4096)
    pages = [(START_KERNEL_MAP + at, at, memory.read(at, 4096)) for at in sorted(memory.pages)]
    source.write_bytes(elf_core(pages, [("VMCOREINFO", 0, vmcoreinfo(4).encode())]))
    before = sorted(os.listdir(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-m", "kvintro", "-c", str(source), "translate", "-", "-o", str(dump)],
        stdin=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"ffffffff81000000\n" * 100)
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not _writes(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _writes(process.pid)
        process.send_signal(number)
        process.wait()
    assert process.returncode != 0
    assert dump.read_bytes() == CONTENT
    assert sorted(os.listdir(tmp_path)) == before


def _writes(pid: int) -> bool:
    """Whether a process has begun its output, in an unnamed or private file."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(link.endswith("(deleted)") or ".kvintro-" in link for link in links)


def test_a_signal_removes_a_temporary_file_with_a_name(tmp_path: Path) -> None:
    program = f"""
import os, signal
os.O_TMPFILE = os.O_DIRECTORY
from kvintro.output import written_file
with written_file({str(tmp_path / "target")!r}) as file:
    file.write("half")
    os.kill(os.getpid(), signal.SIGTERM)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert found.returncode == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []
