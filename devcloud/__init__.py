# SPDX-License-Identifier: Apache-2.0
"""A whole OpenStack on one machine, for the README, the tests and the benchmarks."""
