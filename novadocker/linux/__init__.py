# SPDX-License-Identifier: Apache-2.0
"""What Linux and its daemons offer and Python has no function for; no Nova, no engine."""
