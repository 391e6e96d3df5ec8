# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plugin for sos: adds the address space of the running kernel to ``sos report``."""

from sos.report.plugins import DebianPlugin, Plugin, RedHatPlugin, UbuntuPlugin


# sos 4.0 does not load an IndependentPlugin on Debian.
class Kvintro(Plugin, RedHatPlugin, DebianPlugin, UbuntuPlugin):
    """Collects the layout, what KASLR moved, and contradictions in the kernel's data. Collects no memory."""

    short_desc = "Address space of the running kernel"
    plugin_name = "kvintro"
    profiles = ("system", "debug")
    # sos enables the plugin where this program is installed.
    commands = ("kvintro",)

    def setup(self):
        for name in ("layout", "kaslr", "check"):
            self.add_cmd_output(
                f"kvintro --json {name}",
                suggest_filename=f"{name}.json",
                env={"KVINTRO_CORE": ""},  # sos removes it: the running kernel is read, never a dump
                timeout=600,
            )
