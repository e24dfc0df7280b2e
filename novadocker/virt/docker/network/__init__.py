# SPDX-License-Identifier: Apache-2.0
"""These modules turn Neutron's ports into network devices and switch ports, without Docker."""
