# SPDX-License-Identifier: Apache-2.0
"""These modules turn Nova's block device mappings into volumes, and connect them by os-brick."""
