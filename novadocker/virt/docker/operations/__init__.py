# SPDX-License-Identifier: Apache-2.0
"""Each module implements one operation of Nova with the functions of the other directories."""
