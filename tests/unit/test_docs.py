# SPDX-License-Identifier: Apache-2.0
"""The pages agree with the tree; no text file has a conflict marker of git."""

import ast
import collections
import csv
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"

_ROW = re.compile(r"^   \* - ``(novadocker[a-z_/]*)/``\n     - (.+)$", re.MULTILINE)
_MARKER = re.compile(r"^(?:<{7} .*|>{7} .*|={7})$")


def table() -> dict[str, str]:
    """Return the sentence of each directory in the architecture page."""
    rows = _ROW.findall((DOCS / "architecture.rst").read_text())
    assert len(rows) == len(dict(rows)), "a directory has two rows"
    return dict(rows)


def packages() -> list[str]:
    """Return every package of the source tree as a path below the checkout."""
    found = (ROOT / "novadocker").rglob("__init__.py")
    return sorted(str(path.parent.relative_to(ROOT)) for path in found)


@pytest.mark.parametrize("package", packages())
def test_the_sentence_of_a_directory_is_its_docstring(package: str):
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    docstring = ast.get_docstring(tree) or ""
    assert table().get(package) == " ".join(docstring.split("\n\n")[0].split())


def test_every_directory_of_the_table_exists():
    assert set(table()) == set(packages())


def test_every_path_of_the_architecture_exists():
    text = (DOCS / "architecture.rst").read_text()
    named = set(re.findall(r"``([a-z0-9_]+(?:/[a-z_-]+)+(?:\.py)?)/?``", text))
    roots = (ROOT, ROOT / "novadocker", ROOT / "novadocker" / "virt" / "docker")
    assert len(named) > 40
    assert [
        name
        for name in sorted(named)
        if not any((root / f"{name}{end}").exists() for root in roots for end in ("", ".py"))
    ] == []


def conflicts(lines: list[str], is_rst: bool) -> list[int]:
    """Return the numbers of the lines that are conflict markers of git.

    A line of seven ``=`` is legitimate in reStructuredText as the underline of a title of at most
    seven letters, and as the overline of such a title with an underline.
    """

    def title(number: int) -> bool:
        return 0 <= number < len(lines) and 0 < len(lines[number]) <= 7 and "=" not in lines[number]

    def blank(number: int) -> bool:
        return not (0 <= number < len(lines)) or not lines[number].strip()

    def underlines(number: int) -> bool:
        above = number - 2
        overlined = above >= 0 and lines[above] == "=" * 7
        return title(number - 1) and (blank(above) or overlined) and blank(number + 1)

    def overlines(number: int) -> bool:
        return blank(number - 1) and title(number + 1) and underlines(number + 2)

    return [
        number + 1
        for number, line in enumerate(lines)
        if _MARKER.match(line)
        and not (is_rst and line[0] == "=" and (underlines(number) or overlines(number)))
    ]


def tracked() -> list[Path]:
    """Return the files that git tracks; without git, as in a source archive, skip the test."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no checkout of git")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_conflict_markers():
    found = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{path}:{number}" for number in conflicts(lines, path.suffix == ".rst")]
    assert found == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("<" * 7 + " HEAD\na\n" + "=" * 7 + "\nb\n" + ">" * 7 + " other\n", [1, 3, 5]),
        # the marker that once swallowed a heading of the design page
        ("a sentence.\n" + "=" * 7 + "\nThe names\n=========\n", [2]),
        ("end.\n\n" + "=" * 7 + "\nThe names\n=========\n", [3]),
        ("\nsystemd\n" + "=" * 7 + "\n\ntext\n", []),
        ("=" * 7 + "\nTempest\n" + "=" * 7 + "\n\ntext\n", []),
        ("\n" + "=" * 7 + "\n\n", [2]),
    ],
)
def test_conflict_markers_are_found(text: str, numbers: list[int]):
    assert conflicts(text.splitlines(), is_rst=True) == numbers


def test_a_line_of_equal_signs_is_a_marker_outside_of_pages():
    assert conflicts(["a", "=" * 7, ""], is_rst=False) == [2]


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", PICTURES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_diagram_equals_what_its_text_draws(draw: ModuleType):
    assert set(draw.DIAGRAMS) == {path.stem for path in PICTURES.glob("*.svg")}
    for name in draw.DIAGRAMS:
        assert (PICTURES / f"{name}.svg").read_text() == draw.draw(name), (
            "run: python docs/pictures/draw.py"
        )


def test_the_diagram_of_the_parts_names_every_directory():
    """Rows of the picture name directories by their last part."""
    source = (PICTURES / "parts.txt").read_text()
    shown = set(re.findall(r"([a-z_]+)/", source))
    inner = {"novadocker", "novadocker/virt", "novadocker/virt/docker", "novadocker/privsep"}
    wanted = {Path(name).name for name in table().keys() - inner}
    assert wanted <= shown


def test_the_page_and_the_list_of_functional_tests_agree():
    """The figures of the page count the tests that the list names."""
    rows = list(csv.DictReader((DOCS / "results" / "functional.csv").read_text().splitlines()))
    listed = collections.Counter(row["result"] for row in rows)
    page = (DOCS / "functional.rst").read_text()
    figures = {kind: int(count) for kind, count in re.findall(r"\* - (.+)\n     - (\d+)\n", page)}
    assert figures == dict(listed)
    assert f"* - {len(rows)} tests\n" in page
    assert len({row["test"] for row in rows}) == len(rows)
