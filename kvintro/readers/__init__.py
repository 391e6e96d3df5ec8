# SPDX-License-Identifier: LGPL-2.1-or-later
"""Readers of a kernel's data that do not trust it, for regions and queries."""
