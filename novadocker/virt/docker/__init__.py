# SPDX-License-Identifier: Apache-2.0
"""``driver`` implements Nova's ComputeDriver; each directory implements one subject of it."""
