# SPDX-License-Identifier: Apache-2.0
"""These modules move a server's data to another host, and keep copies in a registry."""
