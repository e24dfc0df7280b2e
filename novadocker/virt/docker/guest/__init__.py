# SPDX-License-Identifier: Apache-2.0
"""These modules prepare a server's interior: identity, config drive, console and /proc."""
