# SPDX-License-Identifier: Apache-2.0
"""The guest's disks: Debian with its kernel, the Python libraries, and the project with its tests.

The first two are kept in the state directory under a digest of their sources.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from devcloud.images import SUITE
from devcloud.install import list_lines
from devcloud.settings import CHECKOUT
from tests.engine import systemd_image

HERE = Path(__file__).resolve().parent
SYSTEM = HERE / "system"
SYSTEMD = "tests/engine/runtime/test_systemd.py"

# Python imports Debian's site-packages first; this line makes it read the wheel's own .pth file
# too.
_SITE_LINE = "import site; site.addsitedir('/opt/tests')\n"

# In the order of their dependencies.
_DISK_MODULES = (
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
)
_BUILD_SECONDS = 600


def system_folder(folder: Path) -> Path:
    """Return the directory of the guest's Debian: ``disk``, ``vmlinuz`` and ``modules``."""
    digest = hashlib.sha256(SUITE.encode())
    for path in sorted(SYSTEM.iterdir()):
        digest.update(path.read_bytes())
    return _kept(folder, "system", digest.hexdigest(), _build_system)


def libraries_folder(folder: Path) -> Path:
    """Return the directory of ``disk``, which has the libraries of the driver and its tests."""
    versions = sorted(f"{found.name} {found.version}" for found in _libraries())
    digest = hashlib.sha256("\n".join([sys.version, *versions]).encode())
    return _kept(folder, "libraries", digest.hexdigest(), _build_libraries)


def make_initrd(target: Path, system: Path, scratch: Path) -> None:
    """Create the initial RAM file system, which only mounts the first disk."""
    for name in ("bin", "dev", "proc", "root"):
        (scratch / name).mkdir(parents=True)
    shutil.copytree(system / "modules", scratch / "modules")
    order = [f"{Path(name).name}.ko" for name in _DISK_MODULES]
    (scratch / "modules" / "order").write_text("\n".join(order))
    shutil.copy("/bin/busybox", scratch / "bin")
    shutil.copy(HERE / "inside" / "init", scratch)
    files = [f"./{path.relative_to(scratch)}" for path in sorted(scratch.rglob("*"))]
    with target.open("wb") as archive:
        subprocess.run(
            ["cpio", "--quiet", "-H", "newc", "-o"],
            cwd=scratch,
            input="\n".join(files).encode(),
            stdout=archive,
            check=True,
            timeout=60,
        )
    shutil.rmtree(scratch)


def make_payload(target: Path, scratch: Path, suites: Mapping[str, Sequence[str]]) -> None:
    """Create the archive that the guest unpacks: the project's wheel, its tests and their list.

    :param suites: pytest's arguments by the name of the suite
    """
    site = scratch / "site"
    _install_wheel(scratch, site)
    for name, arguments in suites.items():
        (site / "suites").mkdir(exist_ok=True)
        (site / "suites" / name).write_text("\n".join(arguments))
        if any(argument.startswith(SYSTEMD) for argument in arguments):
            shutil.copy(systemd_image.archive("/proc/self/ns/net"), site)
    for name in ("tests", "benchmarks", "devcloud"):
        shutil.copytree(CHECKOUT / name, site / name)
    shutil.copy(CHECKOUT / "pyproject.toml", site)
    shutil.copy(HERE / "inside" / "run", site)
    with tarfile.open(target, "w") as archive:
        archive.add(site, ".")
    shutil.rmtree(scratch)


def _kept(folder: Path, name: str, digest: str, build: Callable[[Path], None]) -> Path:
    """Return a directory that is built once per digest; delete the directories of other digests."""
    found = folder / f"{name}-{digest[:12]}"
    if not found.exists():
        for older in folder.glob(f"{name}-*"):
            shutil.rmtree(older)
        draft = folder / f"{name}-draft"
        draft.mkdir()
        build(draft)
        draft.rename(found)
    return found


def _build_system(target: Path) -> None:
    root = target / "root"
    _run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(list_lines(SYSTEM / 'packages.txt'))}",
        '--aptopt=Apt::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        f"--customize-hook={SYSTEM / 'customise'}",
        SUITE,
        str(root),
    )
    shutil.move(root / "boot" / "vmlinuz", target)
    (target / "modules").mkdir()
    (drivers,) = root.glob("usr/lib/modules/*/kernel/drivers")
    for name in _DISK_MODULES:
        shutil.copy(drivers / f"{name}.ko", target / "modules")
    _make_disk(root, target / "disk", gigabytes=8)


def _build_libraries(target: Path) -> None:
    tree = target / "root"
    for library in _libraries():
        for file in library.files or ():
            source = Path(str(file.locate()))
            # Scripts lie outside site-packages, and the guest needs none of them.
            if ".." not in file.parts and source.is_file():
                copy = tree / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)
    (tree / "novadocker-tests.pth").write_text(_SITE_LINE)
    _make_disk(tree, target / "disk", gigabytes=1)


def _libraries() -> list[importlib.metadata.Distribution]:
    """Return all distributions that the driver and its tests need, without the driver's own."""
    found: dict[str, importlib.metadata.Distribution] = {}
    asked = set()
    wanted = ("novadocker[monitor,registry]", "pytest", "pytest-timeout")
    open_requirements = [Requirement(name) for name in wanted]
    while open_requirements:
        needed = open_requirements.pop()
        for extra in ("", *needed.extras):
            if (needed.name, extra) in asked:
                continue
            asked.add((needed.name, extra))
            library = importlib.metadata.distribution(needed.name)
            found[library.name] = library
            open_requirements += [
                further
                for further in map(Requirement, library.requires or ())
                if further.marker is None or further.marker.evaluate({"extra": extra})
            ]
    del found["novadocker"]
    return list(found.values())


def _install_wheel(scratch: Path, site: Path) -> None:
    """Build the project's wheel from a copy, because a build leaves files behind, and unpack it."""
    source = scratch / "source"
    listed = _output("git", "-C", str(CHECKOUT), "ls-files", "-co", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    environment = {**os.environ, "PBR_VERSION": "0.0.1"}
    _run(
        *(*pip, "install", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--target", str(site), str(source)),
        environment=environment,
    )


def _make_disk(tree: Path, disk: Path, gigabytes: int) -> None:
    """Create a sparse disk with a directory's content as its file system; delete the directory."""
    with disk.open("wb") as image:
        image.truncate(gigabytes << 30)
    _run("mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(tree), str(disk))
    shutil.rmtree(tree)


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise RuntimeError(f"{command[0]} exited with status {done.returncode}:\n{tail}")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
