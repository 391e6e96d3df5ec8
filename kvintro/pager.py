# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text that is longer than the terminal, in the pager that its user likes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TextIO

from kvintro.streams import encoded


def show_paged(text: str, stream: TextIO) -> bool:
    """Show text in a pager, if the stream is a terminal and the text does not fit on it.

    ``$KVINTRO_PAGER`` or ``$PAGER`` names the pager (``cat`` or nothing for none); root gets less, since
    what a variable names need not be what root wants to run.

    :return: whether that was done; if not, somebody else has to write the text.
    """
    if not stream.isatty() or text.count("\n") < shutil.get_terminal_size().lines:
        return False
    command = shlex.split(os.environ.get("KVINTRO_PAGER", os.environ.get("PAGER", "less")))
    if os.geteuid() == 0:
        command = ["less"]
    if command[:1] in ([], ["cat"]):
        return False
    # Colours pass, what fits is not held up, and no shell or editor opens from within.
    environment = {"LESS": "FRX", **os.environ, "LESSSECURE": "1"}
    stream.flush()
    try:
        pager = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, env=environment)
    except OSError:
        return False
    assert pager.stdin is not None
    try:
        pager.stdin.write(encoded(text, stream))
        pager.stdin.close()
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # Who has seen enough leaves.
    while True:
        try:
            pager.wait()
            return True
        except KeyboardInterrupt:
            continue  # It is the pager's to answer.
