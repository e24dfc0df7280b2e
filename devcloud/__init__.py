# SPDX-License-Identifier: Apache-2.0
"""A complete OpenStack cloud on one machine, for the README, the tests and the benchmarks."""
