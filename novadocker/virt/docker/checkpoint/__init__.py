# SPDX-License-Identifier: Apache-2.0
"""These modules decide which servers CRIU can write to the disk and restore."""
