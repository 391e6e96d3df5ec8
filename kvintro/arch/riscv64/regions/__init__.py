# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: regions that only this architecture has."""
