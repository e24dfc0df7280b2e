# SPDX-License-Identifier: Apache-2.0
"""The guest's disks: a Debian with its kernel, the Python libraries, and the project's tests.

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

from devcloud.install import list_lines
from devcloud.settings import CHECKOUT
from tests.engine import systemd_image

HERE = Path(__file__).resolve().parent
SYSTEM = HERE / "system"

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
"""The version of Python in each Debian that a guest can have."""

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

_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
# The index has no wheels of them, so the guest has Debian's.
_DEBIAN_LIBRARIES = ("crypt_r",)

# Wheels for these run on each Debian of PYTHONS.
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")


def system_folder(folder: Path, release: str) -> Path:
    """Return the directory of the guest's Debian: ``disk``, ``vmlinuz`` and ``modules``."""
    digest = hashlib.sha256()
    for path in sorted(SYSTEM.iterdir()):
        digest.update(path.read_bytes())
    return _kept(
        folder,
        f"system-{release}",
        digest.hexdigest(),
        lambda target: _build_system(target, release),
    )


def libraries_folder(folder: Path, release: str) -> Path:
    """Return the directory of ``disk``, which has the libraries of the driver and its tests."""
    installed, _ = _libraries(PYTHONS[release])
    versions = sorted(f"{found.name} {found.version}" for found in installed)
    digest = hashlib.sha256("\n".join([sys.version, *versions]).encode())
    return _kept(
        folder,
        f"libraries-{release}",
        digest.hexdigest(),
        lambda target: _build_libraries(target, release),
    )


def make_initrd(target: Path, system: Path, scratch: Path) -> None:
    """Create the initial RAM file system, which only mounts the first disk."""
    for name in ("bin", "dev", "proc", "root"):
        (scratch / name).mkdir(parents=True)
    shutil.copytree(system / "modules", scratch / "modules")
    names = [f"{Path(name).name}.ko" for name in _DISK_MODULES]
    order = [name for name in names if (scratch / "modules" / name).exists()]
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
        if any(
            argument.startswith(SYSTEMD) or Path(SYSTEMD).is_relative_to(argument)
            for argument in arguments
        ):
            shutil.copy(systemd_image.archive("/proc/self/ns/net"), site)
    for name in ("tests", "benchmarks", "devcloud", "docs", "etc"):
        # The wheel has some files of etc.
        shutil.copytree(CHECKOUT / name, site / name, dirs_exist_ok=True)
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


def _build_system(target: Path, release: str) -> None:
    root = target / "root"
    packages = [
        package
        for listed in (SYSTEM / "packages.txt", SYSTEM / f"packages-{release}.txt")
        if listed.exists()
        for package in list_lines(listed)
    ]
    _run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        '--aptopt=Apt::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        f"--customize-hook={SYSTEM / 'customise'}",
        release,
        str(root),
    )
    shutil.move(root / "boot" / "vmlinuz", target)
    (target / "modules").mkdir()
    (modules,) = root.glob("usr/lib/modules/*")
    built_in = (modules / "modules.builtin").read_text().splitlines()
    for name in _DISK_MODULES:
        if f"kernel/drivers/{name}.ko" in built_in:
            continue
        (module,) = modules.glob(f"kernel/drivers/{name}.ko*")
        shutil.copy(module, target / "modules")
        # Debian 13 compresses modules, and the initrd has only busybox.
        if module.suffix == ".xz":
            _run("unxz", str(target / "modules" / module.name))
    _make_disk(root, target / "disk", gigabytes=8)


def _build_libraries(target: Path, release: str) -> None:
    tree = target / "root"
    tree.mkdir()
    python = PYTHONS[release]
    same_python = python == f"{sys.version_info.major}.{sys.version_info.minor}"
    installed, fetched = _libraries(python)
    for library in installed:
        if same_python or all(file.suffix != ".so" for file in library.files or ()):
            _copy(library, tree)
        elif library.name not in _DEBIAN_LIBRARIES:
            # Compiled libraries are those of one Python.
            fetched.append(f"{library.name}=={library.version}")
    if fetched:
        _install_wheels(fetched, tree, python)
    (tree / "novadocker-tests.pth").write_text(_SITE_LINE)
    _make_disk(tree, target / "disk", gigabytes=1)


def _copy(library: importlib.metadata.Distribution, tree: Path) -> None:
    for file in library.files or ():
        source = Path(str(file.locate()))
        # Scripts lie outside site-packages, and the guest needs none of them.
        if ".." not in file.parts and file.suffix != ".pyc" and source.is_file():
            copy = tree / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)


def _install_wheels(requirements: Sequence[str], tree: Path, python: str) -> None:
    """Install the wheels for another Python than this one."""
    platforms = [f"--platform={platform}" for platform in _PLATFORMS]
    _run(
        *(*_PIP, "install", "--no-deps", "--only-binary=:all:", f"--python-version={python}"),
        *("--target", str(tree), *platforms, *requirements),
    )


def _libraries(python: str) -> tuple[list[importlib.metadata.Distribution], list[str]]:
    """Return the distributions that the driver and its tests need, without the driver's own.

    :param python: version of Python
    :returns: the distributions that this environment has, and the requirements that only this
        version of Python has
    """
    versions = {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, importlib.metadata.Distribution] = {}
    absent: list[str] = []
    asked = set()
    wanted = ("novadocker[engine-proxy,monitor,registry]", "pytest", "pytest-timeout")
    open_requirements = [Requirement(name) for name in wanted]
    while open_requirements:
        needed = open_requirements.pop()
        for extra in ("", *needed.extras):
            if (needed.name, extra) in asked:
                continue
            asked.add((needed.name, extra))
            try:
                library = importlib.metadata.distribution(needed.name)
            except importlib.metadata.PackageNotFoundError:
                absent.append(f"{needed.name}{needed.specifier}")
                continue
            found[library.name] = library
            open_requirements += [
                further
                for further in map(Requirement, library.requires or ())
                if further.marker is None or further.marker.evaluate({"extra": extra, **versions})
            ]
    del found["novadocker"]
    return list(found.values()), absent


def _install_wheel(scratch: Path, site: Path) -> None:
    """Build the project's wheel from a copy, because a build leaves files behind, and unpack it."""
    source = scratch / "source"
    listed = _output("git", "-C", str(CHECKOUT), "ls-files", "-co", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, source / name)
    environment = {**os.environ, "PBR_VERSION": "0.0.1"}
    _run(
        *(*_PIP, "install", "--no-deps", "--no-build-isolation", "--no-index"),
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
