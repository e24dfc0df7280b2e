# SPDX-License-Identifier: Apache-2.0
"""These modules run in Neutron's server: an ML2 mechanism driver for Linux bridges.

They need Neutron, which nova-compute does not need.
"""
