# SPDX-License-Identifier: Apache-2.0
"""These modules find, start, stop, freeze, rescue and clean up the containers of servers."""
