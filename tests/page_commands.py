# SPDX-License-Identifier: Apache-2.0
"""The commands and configuration sections in the code blocks of a page."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
_TITLE = re.compile(r"^(.+)\n([=~-])\2+$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command of a page.

    :ivar section: title of the section in which it is
    :ivar text: the command on one line, without its prompt
    :ivar root: whether its prompt is root's
    """

    section: str
    text: str
    root: bool


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """Yield the section and the text of each code block in a language."""
    text = page.read_text()
    titles = [(match.start(), match[1]) for match in _TITLE.finditer(text)]
    for found in _BLOCK.finditer(text):
        if found[1] == language:
            section = [title for start, title in titles if start < found.start()][-1]
            yield section, textwrap.dedent(found[2]).strip("\n")


def commands(page: Path) -> list[Command]:
    """Return the commands of a page in its order.

    :raises ValueError: a line is neither a command with its prompt nor continues one
    """
    found = []
    for section, block in blocks(page, "console"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            prompt, _, text = line.partition(" ")
            if prompt not in ("#", "$") or not text:
                raise ValueError(f"{section}: {line!r} has no prompt")
            found.append(Command(section, text, prompt == "#"))
    return found
