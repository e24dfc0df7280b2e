# SPDX-License-Identifier: Apache-2.0
"""What runs in Neutron's server; needs Neutron, which the compute service does without."""
