# SPDX-License-Identifier: Apache-2.0
"""This directory mirrors ``nova.virt``, below which Nova looks for compute drivers."""
