# SPDX-License-Identifier: Apache-2.0
"""These modules describe the kinds of VIF that Neutron binds, one class each."""
