# SPDX-License-Identifier: LGPL-2.1-or-later
"""Regions that only x86-64 has."""
