# SPDX-License-Identifier: Apache-2.0
"""The cloud's own images, built from Debian packages, and the image for Tempest."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from devcloud.archive import build_archive
from devcloud.install import list_lines
from devcloud.settings import CHECKOUT, Settings
from devcloud.steps import StepFailed, run_command, wait_until

GUESTS = Path(__file__).resolve().parent / "guests"

BUSYBOX = Path("/bin/busybox")

SUITE = "bookworm"

COMMANDS = {
    "busybox": ("/sbin/guest-init",),
    "debian": ("/usr/bin/tini", "--", "/usr/sbin/guest-init"),
    "tempest": ("/usr/bin/tini", "--", "/usr/sbin/tempest-init"),
}
"""The images and their commands."""

SEEDED = ("busybox", "debian")
"""The images that every cloud has."""

TEMPEST = "tempest"
"""The image ``debian`` plus the programs that Tempest's tests call; built when Tempest runs."""

SOURCES = {"busybox": ("busybox",), "debian": ("debian",), TEMPEST: ("debian", TEMPEST)}
"""The source directories of each image."""

BUILD_SECONDS = 1200


def source_digest(name: str) -> str:
    """Return a short digest of an image's sources."""
    digest = hashlib.sha256("\0".join((SUITE, *COMMANDS[name])).encode())
    for source in SOURCES[name]:
        for path in sorted((GUESTS / source).iterdir()):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def archive_path(settings: Settings, name: str) -> Path:
    """Return the path of an image's archive; its name contains the digest of the sources."""
    return settings.images / f"{name}-{source_digest(name)}.tar"


def copy_script(source: Path, target: Path) -> None:
    """Copy an executable file into a root directory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def make_busybox_root(root: Path) -> None:
    """Fill a root directory with busybox, its applets and a command that keeps running."""
    for folder in (
        "bin",
        "sbin",
        "usr/bin",
        "usr/sbin",
        "etc",
        "dev",
        "proc",
        "sys",
        "root",
        "var",
    ):
        (root / folder).mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    copy_script(BUSYBOX, root / "bin" / "busybox")
    listed = subprocess.run([BUSYBOX, "--list-full"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "bin/busybox":
            (root / applet).symlink_to("/bin/busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    copy_script(GUESTS / "busybox" / "guest-init", root / "sbin" / "guest-init")


def build_busybox(target: Path) -> None:
    """Build the small image.

    :param target: the archive.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        make_busybox_root(root)
        build_archive(root, target, command=COMMANDS["busybox"])


def build_debian(settings: Settings, name: str, target: Path) -> None:
    """Build the image of a login server with debootstrap, in about a minute and a half.

    :param name: ``debian`` or ``tempest``.
    :raises StepFailed: debootstrap or a command inside the new root failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sources = [GUESTS / source for source in SOURCES[name]]
    packages = ",".join(line for source in sources for line in list_lines(source / "packages.txt"))
    advice = "check that the Debian mirror is reachable: apt-get update"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        root = Path(scratch) / "root"
        run_command(
            [
                *("debootstrap", "--variant=minbase", f"--include={packages}"),
                *(SUITE, root),
            ],
            log=settings.log / f"debootstrap-{name}.log",
            advice=advice,
            timeout=BUILD_SECONDS,
        )
        copy_script(GUESTS / "debian" / "guest-init", root / "usr" / "sbin" / "guest-init")
        for source in sources:
            run_command(
                ["chroot", root, "/bin/sh", "-e"],
                log=settings.log / f"{name}-customise.log",
                advice=advice,
                stdin=(source / "customise").read_text(),
            )
        build_archive(root, target, command=COMMANDS[name])


def build_all(settings: Settings) -> None:
    """Build the missing archives and delete the archives of older sources."""
    wanted = {name: archive_path(settings, name) for name in SOURCES}
    settings.images.mkdir(parents=True, exist_ok=True)
    for entry in settings.images.iterdir():
        if entry not in wanted.values():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not wanted["busybox"].exists():
        build_busybox(wanted["busybox"])
    if not wanted["debian"].exists():
        build_debian(settings, "debian", wanted["debian"])


class Archives:
    """The archives. Another process may still be building them."""

    def __init__(self, settings: Settings, builder: subprocess.Popen[bytes] | None) -> None:
        self._settings = settings
        self._builder = builder

    def wait_for(self, name: str) -> Path:
        """Wait until an image's archive is complete and return its path.

        :raises StepFailed: the build failed.
        """
        path = archive_path(self._settings, name)

        def finished() -> bool:
            return path.exists() or self._builder is None or self._builder.poll() is not None

        log = self._settings.log / "images.log"
        advice = "fix the cause, then: python3 -m devcloud up"
        wait_until(finished, what=f"building {name}", advice=advice, log=log, timeout=BUILD_SECONDS)
        if not path.exists():
            raise StepFailed(f"The build of the image {name} failed", advice, log)
        return path


@contextlib.contextmanager
def building(settings: Settings) -> Iterator[Archives]:
    """Build missing archives in a child process, which is terminated when the block ends."""
    if all(archive_path(settings, name).exists() for name in SEEDED):
        yield Archives(settings, None)
        return
    environment = dict(os.environ, PYTHONPATH=str(CHECKOUT), DEVCLOUD_DIR=str(settings.folder))
    with (settings.log / "images.log").open("w") as log:
        builder = subprocess.Popen(
            [sys.executable, "-m", "devcloud", "images"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Archives(settings, builder)
    finally:
        if builder.poll() is None:
            os.killpg(builder.pid, signal.SIGTERM)
            builder.wait(timeout=30)
