# SPDX-License-Identifier: LGPL-2.1-or-later
"""Struct pages: their layout, reading them in bulk, decoding single ones, and the census."""
