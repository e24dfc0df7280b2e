# SPDX-License-Identifier: Apache-2.0
"""Sphinx: see the contributor's guide for how to build."""

from importlib import metadata

project = "novadocker"
author = "novadocker developers"
release = metadata.version(project)
version = release

extensions = ["oslo_config.sphinxext", "reno.sphinxext"]
exclude_patterns = ["_build", "build"]
html_theme = "alabaster"
html_show_copyright = False
html_theme_options = {"description": "Docker containers as OpenStack servers"}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
man_pages = [
    ("recover", "novadocker-recover", "read servers while the Docker Engine is down", [], 8),
]
