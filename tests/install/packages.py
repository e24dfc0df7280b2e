# SPDX-License-Identifier: Apache-2.0
"""The project's Debian packages, built in a Debian 13 that has what Build-Depends lists."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import CHECKOUT, page_commands
from tests.install import system

SUITE = "trixie"
BUILDER = (
    *("build-essential", "debhelper", "dh-python", "pybuild-plugin-pyproject", "python3-all"),
    *("python3-pbr", "python3-setuptools", "python3-sphinx", "git", "lintian"),
)
"""The packages of the builder: Build-Depends of ``debian/control``, git and lintian."""

SOURCE = "/srv/novadocker"
"""The path of the checkout in a root directory."""

_PAGE_SECTION = "Debian packages"

_AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@example.org")


def page() -> list[str]:
    """Return the commands of the installation page that build and install the packages.

    Each begins in the checkout, and answers apt itself.
    """
    listed = page_commands.commands(CHECKOUT / "docs/install.rst")
    texts = [command.text for command in listed if command.section == _PAGE_SECTION]
    return [f"cd {SOURCE} && {text.replace('apt-get ', 'apt-get -q -y ')}" for text in texts]


@contextmanager
def builder(held: Path) -> Iterator[Path]:
    """Yield a root directory with a clone of the checkout, without what git ignores."""
    with system.copied(held, system.root_folder(held, SUITE, BUILDER)) as root:
        copy_checkout(root)
        system.prepare(root, "apt-get", "-q", "update")
        for command in page()[:-2]:
            system.prepare(root, "sh", "-c", command)
        yield root


def copy_checkout(root: Path) -> None:
    """Put a clone of the checkout into a root directory, and commit all of it."""
    source = root / SOURCE[1:]
    source.mkdir(parents=True)
    subprocess.run(
        ["xargs", "-0", "cp", "--parents", "--no-dereference", "-t", source],
        input="\0".join(tracked()).encode(),
        cwd=CHECKOUT,
        check=True,
        timeout=60,
    )
    _git(source, "init", "-q")
    _commit(source)


def _commit(source: Path) -> None:
    _git(source, "add", "-A")
    _git(source, *_AUTHOR, "commit", "-q", "--allow-empty", "-m", "all")


def build(root: Path, target: Path) -> str:
    """Commit the clone in a builder and build its packages as a new archive for apt.

    :return: the output of the build and of lintian
    """
    source = root / SOURCE[1:]
    _commit(source)
    output = system.prepare(root, "sh", "-c", page()[-2], network=False)
    output += system.prepare(
        root,
        *("lintian", "--allow-root", "--fail-on=error", "--info"),
        *(f"{SOURCE}/dist/{path.name}" for path in (source / "dist").glob("*.changes")),
        network=False,
    )
    index = "cd $0 && rm *.changes *.buildinfo && dpkg-scanpackages . >Packages"
    output += system.prepare(root, "sh", "-c", index, f"{SOURCE}/dist", network=False)
    shutil.move(source / "dist", target)
    return output


def tracked(*folders: str) -> list[str]:
    """Return the files of the checkout that git does not ignore."""
    listed = _git(CHECKOUT, "ls-files", "-co", "--exclude-standard", "-z", "--", *folders)
    return [name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()]


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", folder, *arguments], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout
