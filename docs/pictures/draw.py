# SPDX-License-Identifier: Apache-2.0
"""Draw the documentation's diagrams as SVG from the text files beside this module.

Run ``python docs/pictures/draw.py`` after a change of a ``.txt`` file. Standard library only: the
result depends on nothing but the text, so a unit test can compare it with the file in the
repository. Graphviz does not allow that, because its layout differs from release to release.

``parts.txt`` has the form of `draw_parts`, ``boot.txt`` the form of `draw_sequence`.
"""

import textwrap
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent

WIDTH = 960
MARGIN = 16
LINE = 15
CHARACTER = 6.3
"""Mean width of a character of the small text; boxes are as wide as the picture, so it suffices."""

# each frame has the next pair of colours: fill, stroke
COLOURS = (
    ("#eef4fb", "#2b5c93"),
    ("#fdf1e7", "#a5561b"),
    ("#eef7ee", "#3a7a3d"),
    ("#f4f0f9", "#62488f"),
    ("#f4f4f4", "#5a5a5a"),
)

STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;"
    "font-size:12px;fill:#1d1d1d}"
    ".name{font-family:ui-monospace,'DejaVu Sans Mono',monospace;font-weight:600}"
    ".head{font-weight:600;font-size:13px}"
)


def lines_of(source: str) -> list[str]:
    """Return the lines of a source without empty lines and comments."""
    return [line for line in source.splitlines() if line.strip() and not line.startswith("#")]


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """Return one line of text."""
    style = f' class="{kind}"' if kind else ""
    where = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f"<text{style} {where}>{escape(content, quote=False)}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    """Return a rectangle with round corners."""
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {size} rx="5" fill="{fill}" stroke="{stroke}"/>'


def arrow(x1: float, x2: float, y: float) -> str:
    """Return a horizontal arrow; if both ends are equal, a loop to the right."""
    if x1 == x2:
        path = f"M{x1:g} {y - 5:g}h16v10h-14"
    else:
        path = f"M{x1:g} {y:g}H{x2 - 2 if x2 > x1 else x2 + 2:g}"
    return f'<path d="{path}" fill="none" stroke="#1d1d1d" marker-end="url(#end)"/>'


def document(height: float, title: str, parts: Iterable[str]) -> str:
    """Return the whole picture on a white ground, which dark pages need."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}"'
            f' width="{WIDTH}" height="{height:g}" role="img">',
            f"<title>{escape(title, quote=False)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
            ' markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#1d1d1d"/></marker>'
            "</defs>",
            f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def wrap(content: str, width: float) -> list[str]:
    """Return a text in lines that fit a width."""
    return textwrap.wrap(content, max(int(width / CHARACTER), 8), break_on_hyphens=False)


def draw_parts(source: str) -> str:
    """Draw rows of boxes in frames.

    :param source: ``= TITLE`` is the title of the picture, ``[NAME]`` begins a frame; every other
        line is a row of boxes ``NAME: TEXT``, separated by ``|``.
    """
    title, frames = "", []
    for line in lines_of(source):
        if line.startswith("= "):
            title = line[2:]
        elif line.startswith("["):
            frames.append((line.strip()[1:-1], []))
        else:
            cells = [cell.strip().partition(": ") for cell in line.split("|")]
            frames[-1][1].append([(name, content) for name, _, content in cells])
    drawn, y = [], float(MARGIN)
    for number, (frame, rows) in enumerate(frames):
        fill, stroke = COLOURS[number % len(COLOURS)]
        inside, bottom = [], y + 30
        for row in rows:
            width = (WIDTH - 4 * MARGIN - (len(row) - 1) * 10) / len(row)
            wrapped = [wrap(content, width - 16) for _, content in row]
            height = 26 + LINE * max(map(len, wrapped))
            for column, ((name, _), lines) in enumerate(zip(row, wrapped, strict=True)):
                x = 2 * MARGIN + column * (width + 10)
                inside.append(box(x, bottom, width, height, "#ffffff", stroke))
                inside.append(text(x + 8, bottom + 17, name, "name"))
                for place, content in enumerate(lines):
                    inside.append(text(x + 8, bottom + 33 + LINE * place, content))
            bottom += height + 10
        drawn.append(box(MARGIN, y, WIDTH - 2 * MARGIN, bottom - y, fill, stroke))
        drawn.append(text(2 * MARGIN, y + 20, frame, "head"))
        drawn += inside
        y = bottom + 12
    return document(y - 12 + MARGIN, title, drawn)


def draw_sequence(source: str) -> str:
    """Draw messages between parties, from top to bottom.

    :param source: ``= TITLE`` is the title of the picture, ``| NAME | NAME ...`` has the parties;
        every other line is ``FROM > TO: TEXT``, where FROM and TO are names of parties.
    """
    title, parties, messages = "", [], []
    for line in lines_of(source):
        if line.startswith("= "):
            title = line[2:]
        elif line.startswith("|"):
            parties = [name.strip() for name in line.strip().strip("|").split("|")]
        else:
            ends, _, content = line.partition(": ")
            begin, _, end = (name.strip() for name in ends.partition(">"))
            messages.append((parties.index(begin), parties.index(end), content))
    step = (WIDTH - 2 * MARGIN) / len(parties)
    middle = [MARGIN + step * (column + 0.5) for column in range(len(parties))]
    drawn, y = [], MARGIN + 58.0
    for number, (begin, end, content) in enumerate(messages, 1):
        left, right = sorted((middle[begin], middle[end]))
        width = max(right - left, 2 * step) - 20
        lines = wrap(f"{number}. {content}", width)
        x = (left + right) / 2 if begin != end else left + 24
        anchor = "middle" if begin != end else "start"
        # the text must not leave the picture
        half = max(map(len, lines)) * CHARACTER / 2
        if anchor == "middle":
            x = min(max(x, MARGIN + half), WIDTH - MARGIN - half)
        elif x + 2 * half > WIDTH - MARGIN:
            x, anchor = left - 8, "end"
        for place, line in enumerate(lines):
            top = y + LINE * place
            start = {"middle": x - half, "start": x, "end": x - 2 * half}[anchor] - 2
            drawn.append(
                f'<rect x="{start:g}" y="{top - 11:g}" width="{2 * half + 4:g}" height="{LINE}"'
                ' fill="#ffffff"/>'
            )
            drawn.append(text(x, top, line, anchor=anchor))
        y += LINE * (len(lines) - 1) + (8 if begin != end else 0)
        drawn.append(arrow(middle[begin], middle[end], y if begin != end else y - 4))
        y += 26
    heads = []
    for column, name in enumerate(parties):
        fill, stroke = COLOURS[column % len(COLOURS)]
        lines = name.split(" / ")
        heads.append(
            f'<path d="M{middle[column]:g} {MARGIN + 36}V{y:g}" stroke="{stroke}"'
            ' stroke-dasharray="3 4"/>'
        )
        heads.append(box(middle[column] - step / 2 + 4, MARGIN, step - 8, 36, fill, stroke))
        for place, line in enumerate(lines):
            top = MARGIN + (22 if len(lines) == 1 else 15 + LINE * place)
            heads.append(text(middle[column], top, line, "name", "middle"))
    return document(y + MARGIN, title, [*heads, *drawn])


DIAGRAMS: dict[str, Callable[[str], str]] = {"parts": draw_parts, "boot": draw_sequence}
"""The names of the text files, and what draws each."""


def draw(name: str) -> str:
    """Return the SVG of one text file.

    :param name: the name of the file without ``.txt``.
    """
    return DIAGRAMS[name]((HERE / f"{name}.txt").read_text())


def main() -> None:
    """Write every diagram."""
    for name in DIAGRAMS:
        (HERE / f"{name}.svg").write_text(draw(name))


if __name__ == "__main__":
    main()
