# SPDX-License-Identifier: Apache-2.0
"""A directive of Sphinx that renders ``support-matrix.ini`` as a table."""

import configparser
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

DRIVER = "docker"
SYMBOLS = {"complete": "✔ yes", "partial": "✔ in part", "missing": "✖ no"}
HEADER = ("Feature", "Status in Nova", "Support", "Notes")
WIDTHS = (30, 15, 10, 45)


def read_matrix(path: Path) -> list[tuple[str, str, str, str]]:
    """Return a row of the table for each feature of the file.

    :raises KeyError: a feature has no entry of the driver, or an unknown one
    """
    matrix = configparser.ConfigParser(interpolation=None)
    matrix.read_string(path.read_text())
    return [
        (
            feature["title"],
            feature["status"],
            SYMBOLS[feature[f"driver.{DRIVER}"]],
            feature.get(f"driver-notes.{DRIVER}", "").replace("\n", " "),
        )
        for name, feature in matrix.items()
        if name not in (matrix.default_section, f"driver.{DRIVER}")
    ]


class SupportMatrix(Directive):
    """The table of the file that the argument names."""

    required_arguments = 1
    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        environment = self.state.document.settings.env
        relative, path = environment.relfn2path(self.arguments[0])
        # Sphinx builds the page anew after a change of the file.
        environment.note_dependency(relative)
        group = nodes.tgroup(cols=len(HEADER))
        group += [nodes.colspec(colwidth=width) for width in WIDTHS]
        group += nodes.thead("", _row(HEADER))
        group += nodes.tbody("", *map(_row, read_matrix(Path(path))))
        return [nodes.table("", group)]


def _row(cells: tuple[str, ...]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph(text=cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("support-matrix", SupportMatrix)
    return {"parallel_read_safe": True}
