# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: what to know about its regions."""
