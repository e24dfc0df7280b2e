# SPDX-License-Identifier: Apache-2.0
"""This package runs Docker containers as servers of OpenStack Nova.

This module imports nothing, because the loader's ``.pth`` file reads it at every start of Python.
"""
