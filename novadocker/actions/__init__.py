# SPDX-License-Identifier: Apache-2.0
"""These modules act on servers through OpenStack's APIs when an alarm fires."""
