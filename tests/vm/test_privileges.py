# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvintro's rights in a guest: as root, with sudo, as a user, and with a hidden /proc/kcore."""

from __future__ import annotations

import json
import re

from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.vm.guests import EARLIER, ENTRIES, needs_lab, run

_STATUS = """
import os
lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(lines["Uid"].split(), lines["Gid"].split(), int(lines["CapEff"], 16), int(lines["CapPrm"], 16))
print(k.layout().partial, k.identity.live, k.identity.symbols, os.environ["HOME"])
try:
    open("/proc/kcore", "rb")
    print("opened")
except PermissionError:
    print("not permitted")
"""

# sudo finds an ordinary installation: by root, readable by all users.
_PREPARE = """
cp -r /lab/tree/kvintro /usr/lib/python3/dist-packages/ && install -m 755 /lab/bin/kvintro /usr/bin/kvintro
useradd -m bob && echo 'bob ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/bob && chmod 440 /etc/sudoers.d/bob
echo 127.0.0.1 "$(hostname)" >>/etc/hosts; unset PYTHONPATH
"""


@needs_lab
def test_privileges() -> None:
    """The rights of the process while it parses, from /proc/PID/status; and the owner of its files."""
    entry = next(row for row in ENTRIES if row.name == "debian-6.12-4level-kaslr")
    as_bob = "cd /tmp; chmod 644 /lab/status.py; su bob -c"
    evil = "import os\nos.write(1, b'LOADED')\n"
    results = run(
        entry,
        _PREPARE + f"{as_bob} 'sudo kvintro shell /lab/status.py'",
        f"{as_bob} 'sudo kvintro layout -o /tmp/bobs && stat -c %U /tmp/bobs'",
        f"{as_bob} 'kvintro layout'",
        f"{as_bob} 'kvintro --sudo shell /lab/status.py'",
        f"{as_bob} 'sudo kvintro --keep-root shell /lab/status.py'",
        "mkdir /tmp/evil; for m in numpy drgn plugin; do cp /lab/evil.py /tmp/evil/$m.py; done; "
        "chmod -R a+rX /tmp/evil; cd /tmp/evil; "
        "su bob -c 'sudo PYTHONPATH=/tmp/evil DRGN_PLUGINS=x=/tmp/evil/plugin.py kvintro layout'",
        "su bob -c 'sudo kvintro show modules --json; sudo kvintro check --json; sudo kvintro pages --json' "
        "| grep -c schema",
        extra={"status.py": _STATUS.encode(), "evil.py": evil.encode()},
    )
    bob = "['1000', '1000', '1000', '1000'] ['1000', '1000', '1000', '1000'] 0 0"
    by_sudo, output, user, helper, kept, planted, others = results
    for result in (by_sudo, helper):
        assert result.code == 0, result.stderr
        status, state, opened = result.stdout.splitlines()[-3:]
        assert status == bob
        assert state == "False True kallsyms /home/bob"
        assert opened == "not permitted"
    assert output.stdout.split() == ["bob"], output.stderr
    assert user.code == 3
    what, remedy, command = user.stderr.splitlines()
    assert "root only" in what and "--sudo" in remedy
    assert command.strip().endswith("/kvintro --sudo layout")
    assert kept.stdout.startswith("['0', '0', '0', '0']")
    assert planted.code == 0, planted.stderr
    assert "LOADED" not in planted.stdout
    assert others.stdout.strip() == "3", others.stderr


# The kernel's own VMCOREINFO in the notes of /proc/kcore.
_NOTE = """
import struct, sys
file = open("/proc/kcore", "rb")
head = file.read(64)
at, (size, count) = struct.unpack_from("<Q", head, 32)[0], struct.unpack_from("<HH", head, 54)
for number in range(count):
    file.seek(at + number * size)
    fields = struct.unpack("<IIQQQQQQ", file.read(56))
    if fields[0] == 4:
        file.seek(fields[2])
        notes = file.read(fields[5])
        name = notes.index(b"VMCOREINFO\\0")
        (length,) = struct.unpack_from("<I", notes, name - 8)
        sys.stdout.write(notes[name + 12 : name + 12 + length].decode())
"""

#: Ways in which a container or an administrator hides /proc/kcore, and the message for each.
HIDDEN = {
    "mount --bind /dev/null /proc/kcore": "masked",
    "touch /tmp/empty && mount --bind /tmp/empty /proc/kcore": "masked",
    "mount -t tmpfs none /proc": "/proc is not mounted",
    "mount -t proc -o subset=pid none /proc": "shows processes only",
}


@needs_lab
def test_hidden_and_given() -> None:
    """/proc/kcore as containers hide it; and ``--vmcoreinfo``, which must be the running kernel's."""
    entry = next(row for row in ENTRIES if row.name == "debian-6.12-4level-kaslr")
    given = "kvintro --vmcoreinfo /tmp/note"
    earlier = open_kernel(Request(core=str(EARLIER / "core.kdump"))).source.vmcoreinfo
    lines = "".join(f"{key}={value}\n" for key, value in earlier.items())
    *hidden, caps, plain, own, information, other = run(
        entry,
        *[f"unshare -m sh -c '{command} && kvintro layout'" for command in HIDDEN],
        "setpriv --bounding-set -sys_rawio kvintro layout",
        "kvintro layout --json",
        f"python3 /lab/note.py >/tmp/note && {given} layout --json",
        f"{given} info",
        "kvintro --vmcoreinfo /lab/other layout",
        extra={"note.py": _NOTE.encode(), "other": lines.encode()},
    )
    for result, reason in zip([*hidden, caps], [*HIDDEN.values(), "root may not read /proc/kcore"]):
        assert result.code == 3, (reason, result.stdout, result.stderr)
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 2, result.stderr  # the error and the remedy
        assert not result.stdout
    assert own.code == 0, own.stderr
    places = [
        {row["key"]: (row["start"], row["end"]) for row in json.loads(result.stdout)["regions"]}
        for result in (own, plain)
    ]
    assert places[0] == places[1]
    assert re.search("^VMCOREINFO +--vmcoreinfo$", information.stdout, re.MULTILINE), information.stdout
    assert other.code == 3
    assert "/lab/other" in other.stderr
    assert not other.stdout
