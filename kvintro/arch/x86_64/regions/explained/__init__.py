# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``kvintro explain`` says of the regions that only x86-64 has."""
