"""Debian's kernels, downloaded and unpacked without installing any of them.

An apt configuration of its own in the cache asks the machine's own archive for other suites than the
machine's: kernels of several releases lie side by side, and the system's package lists stay as they
are.
"""

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from lab.common import LabError, cache_dir, fresh_dir, lock, run, say
from lab.machine import AMD64, Machine

LISTS_MAX_AGE = 24 * 3600.0


@dataclass(frozen=True)
class Source:
    """One archive as the machine's apt knows it."""

    uri: str
    suites: Tuple[str, ...]
    signed_by: str


@dataclass(frozen=True)
class Package:
    """A package name and one of its versions."""

    name: str
    version: str


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: what can be booted, and the modules that belong to it."""

    release: str
    image: Path
    modules: Optional[Path]
    config: Optional[Path]
    package: str
    version: str
    #: Where the vmlinux with DWARF is, or would be after debug_vmlinux().
    vmlinux: Path
    #: What modules are built with, if it is at hand.
    headers: Optional[Path] = None


def _one_line_sources(text: str) -> Iterator[Source]:
    """Entries of the old format: deb [options] uri suite component..."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)", line)
        if match:
            options, uri, suite = match.groups()
            key = re.search(r"signed-by=(\S+)", options or "", re.IGNORECASE)
            yield Source(uri, (suite,), key.group(1) if key else "")


def _deb822_sources(text: str) -> Iterator[Source]:
    """Stanzas of the new format."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: Dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            for uri in fields.get("uris", "").split():
                yield Source(uri, tuple(fields.get("suites", "").split()), fields.get("signed-by", ""))


def machine_sources(etc: Path = Path("/etc/apt")) -> List[Source]:
    """Every archive in the machine's own apt configuration."""
    sources: List[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            parse = _deb822_sources if path.suffix == ".sources" else _one_line_sources
            sources.extend(parse(path.read_text()))
    return sources


def debian_codename() -> str:
    """The suite this machine runs, "" when it is not Debian."""
    fields = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    if fields.get("ID") != "debian":
        return ""
    return fields.get("VERSION_CODENAME", "").strip('"')


def debian_archives() -> Tuple[Source, Source]:
    """The main and the security archive, from the machine's configuration or $KVINTRO_DEBIAN."""
    given = os.environ.get("KVINTRO_DEBIAN")
    if given:
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        main = Source(given, (), key if Path(key).exists() else "")
        return main, Source(given.rstrip("/") + "-security", (), main.signed_by)
    codename = debian_codename()
    main_source = security_source = None
    for source in machine_sources():
        if codename and codename in source.suites:
            main_source = main_source or source
        if codename and f"{codename}-security" in source.suites:
            security_source = security_source or source
    if main_source is None:
        raise LabError("apt has no Debian archive on this machine: set KVINTRO_DEBIAN to the address of one")
    if security_source is None:
        # Mirrors carry both archives side by side under these two names.
        uri = main_source.uri.rstrip("/") + "-security"
        security_source = Source(uri, (), main_source.signed_by)
    return main_source, security_source


def _natural(text: str) -> List[Tuple[int, str]]:
    """A sort key that takes 6.12 for newer than 6.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


class Archive:
    """apt with the lab's own lists, of the packages of one architecture.

    :param suite: the only suite to use; by default, all suites that have the kernels.
    :param beside: the machine whose kernels the suites have, if it is another one.
    """

    def __init__(self, machine: Machine = AMD64, suite: str = "", beside: Optional[Machine] = None) -> None:
        self.machine = machine
        words = ["apt", *([machine.name] if machine.foreign else []), *([suite] if suite else [])]
        words += [] if beside is None else ["beside", beside.name]
        self.root = cache_dir() / "-".join(words)
        self._suites = ((suite, False),) if suite else (beside or machine).suites
        self._fresh = False
        self._forced = False

    def _options(self) -> List[str]:
        settings = {
            "Dir::Etc::sourcelist": self.root / "lab.sources",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::lists": self.root / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self.root,
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # A list that could not be fetched is an error, and not one fewer list.
            "APT::Update::Error-Mode": "any",
            # The cache may be where apt's own user cannot go.
            "APT::Sandbox::User": "root",
        }
        if self.machine.foreign:
            settings.update(dict.fromkeys(("APT::Architecture", "APT::Architectures::"), self.machine.name))
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def update(self, force: bool = False) -> None:
        """Fetch the lists of packages, unless they are fresh."""
        if self._fresh and not force:
            return
        self._forced = self._forced or force
        stamp = self.root / "updated"
        with lock("apt"):
            for name in ("lists/partial", "archives/partial"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            text = self._sources()
            sources = self.root / "lab.sources"
            same = sources.exists() and sources.read_text() == text
            age = time.time() - stamp.stat().st_mtime if stamp.exists() else LISTS_MAX_AGE
            if force or not same or age >= LISTS_MAX_AGE:
                say("fetching the lists of packages")
                sources.write_text(text)
                try:
                    run(["apt-get", *self._options(), "update", "-q"])
                    stamp.touch()
                except LabError as error:
                    # Without a network, what the cache has must do.
                    if force or not stamp.exists():
                        raise
                    say(f"going on with old lists: {error}")
        self._fresh = True

    def _sources(self) -> str:
        main, security = debian_archives()
        stanzas = []
        for archive, wanted in ((main, False), (security, True)):
            suites = " ".join(name for name, in_security in self._suites if in_security == wanted)
            if not suites:
                continue
            stanza = f"Types: deb\nURIs: {archive.uri}\nSuites: {suites}\nComponents: main\n"
            if archive.signed_by:
                stanza += f"Signed-By: {archive.signed_by}\n"
            stanzas.append(stanza)
        return "\n".join(stanzas)

    def matching(self, pattern: str) -> List[str]:
        """Names of packages that match a regular expression as a whole, newest first."""
        self.update()
        names = run(["apt-cache", *self._options(), "pkgnames"]).split()
        whole = re.compile(pattern)
        return sorted((n for n in set(names) if whole.fullmatch(n)), key=_natural, reverse=True)

    def versions(self, name: str) -> List[Package]:
        """The versions of a package that the archive lists, in apt's order."""
        self.update()
        lines = run(["apt-cache", *self._options(), "madison", name]).splitlines()
        fields = [[word.strip() for word in line.split("|")] for line in lines]
        return [Package(f[0], f[1]) for f in fields if len(f) == 3 and f[2].endswith("Packages")]

    def download(self, package: Package, directory: Path) -> Path:
        """Fetch one .deb into a directory."""
        before = set(directory.glob("*.deb"))
        command = ["apt-get", *self._options(), "-q", "download", f"{package.name}={package.version}"]
        run(command, cwd=directory)
        (deb,) = set(directory.glob("*.deb")) - before
        return deb

    def unpack(self, name: str, target: Path, version: Optional[str] = None) -> Package:
        """Unpack the newest version that the archive still has (lists run ahead of the pool)."""
        complaint: Optional[LabError] = None
        candidates = [p for p in self.versions(name) if version in (None, p.version)]
        for package in candidates:
            try:
                deb = self.download(package, target)
            except LabError as error:
                complaint = error
                continue
            run(["dpkg", "-x", str(deb), str(target)])
            deb.unlink()
            return package
        raise complaint or LabError(f"the archive has no package {name}")

    def unpack_with_dependencies(self, names: Sequence[str], target: Path) -> None:
        """Unpack the newest packages of some names and what they depend on. None of their scripts runs."""
        self.update()
        archives = self.root / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        # The lab's list of installed packages is empty, so there is nothing to lock.
        words = ["-o", "Debug::NoLocking=1", "-qy", "--no-install-recommends", "--download-only"]
        run(["apt-get", *self._options(), *words, "install", *names])
        # base-files has the links from /bin and /lib to /usr, which others are unpacked through.
        for deb in sorted(archives.glob("*.deb"), key=lambda deb: not deb.name.startswith("base-files_")):
            run(["dpkg", "-x", str(deb), str(target)])
            deb.unlink()

    # --- kernels

    def newest_series(self, major: int) -> str:
        """The newest release of a major version that backports carries, such as 7.3 for 7."""
        for name in self.matching(rf"linux-binary-{major}\.\d+\.\d+\+deb1[34]-{self.machine.flavour}"):
            match = re.match(r"linux-binary-(\d+\.\d+)\.", name)
            if match:
                return match.group(1)
        raise LabError(f"the archive has no kernel {major}.x")

    def kernel(self, series: str, flavour: str = "") -> Kernel:
        """The newest kernel of a series (5.10, 6.1, 6.12, 7.3, ...), unpacked in the cache.

        :param flavour: Debian's word for its configuration, as "arm64-16k"; the cloud kernel if "".
        """
        # Up to 6.12 one package holds all; since 7.0 the image and the modules are apart.
        # A version with an ABI number (6.1.0-49) has its patch level in the package's version only.
        number, flavour = re.escape(series), flavour or self.machine.flavour
        unsigned = "-unsigned" if self.machine.signed else ""
        image = rf"linux-image-{number}\.\d+(\+deb1[23]|-\d+)-{flavour}{unsigned}"
        binary = rf"linux-binary-{number}\.\d+\+deb1[34]-{flavour}"
        names = self.matching(f"{image}|{binary}")
        if not names:
            raise LabError(f"the archive has no kernel {series}")
        # One that is there already will do, however new the lists are: only update(force=True)
        # asks for a newer one. It also spares asking for versions that the pool has lost.
        known = [name for name in names if (self._kernel_dir(name) / "package").exists()]
        if known and not self._forced:
            names = known
        complaint: Optional[LabError] = None
        for name in names:
            try:
                return self._unpacked_kernel(name)
            except LabError as error:
                complaint = error
        raise complaint or LabError(f"no kernel {series} could be fetched")

    @staticmethod
    def _kernel_dir(name: str) -> Path:
        return cache_dir() / "kernels" / re.sub(r"^linux-(image|binary)-|-unsigned$", "", name)

    def _unpacked_kernel(self, name: str) -> Kernel:
        target = self._kernel_dir(name)
        release = target.name
        note = target / "package"
        with lock("kernels"):
            if not note.exists():
                say(f"fetching {name}")
                with fresh_dir(target) as partial:
                    package = self.unpack(name, partial)
                    if name.startswith("linux-binary-"):
                        self.unpack(f"linux-modules-{release}", partial, package.version)
                    (partial / "package").write_text(f"{package.name} {package.version}\n")
        package_name, version = note.read_text().split()
        images = [*target.glob("boot/vmlinu[xz]-*"), *target.glob(f"usr/lib/modules/{release}/vmlinuz")]
        configs = [*target.glob("boot/config-*"), *target.glob(f"usr/lib/modules/{release}/config")]
        modules = [*target.glob(f"lib/modules/{release}"), *target.glob(f"usr/lib/modules/{release}")]
        if not images:
            raise LabError(f"{name} holds no kernel image")
        return Kernel(
            release=release,
            image=images[0],
            modules=modules[0] if modules else None,
            config=configs[0] if configs else None,
            package=package_name,
            version=version,
            vmlinux=cache_dir() / "dbg" / release / "vmlinux",
        )

    def debug_vmlinux(self, series: str) -> Path:
        """The vmlinux with DWARF of the kernel that kernel(series) boots: $CACHE/dbg/RELEASE/vmlinux."""
        kernel = self.kernel(series)
        target = kernel.vmlinux.parent
        with lock("dbg"):
            if not kernel.vmlinux.exists():
                name = f"linux-image-{kernel.release}-dbg"
                say(f"fetching {name}, some 300 MB")
                with fresh_dir(target) as partial:
                    # The signed and the unsigned packages differ in their versions' spelling, so
                    # the newest of this name it is: the release is in the name.
                    tree = partial / "tree"
                    tree.mkdir()
                    self.unpack(name, tree)
                    found = [p for p in tree.rglob("vmlinux*") if p.is_file() and not p.is_symlink()]
                    if not found:
                        raise LabError(f"{name} holds no vmlinux")
                    shutil.move(str(found[0]), str(partial / "vmlinux"))
                    shutil.rmtree(tree)
        return kernel.vmlinux
