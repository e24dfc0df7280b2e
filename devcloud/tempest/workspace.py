# SPDX-License-Identifier: Apache-2.0
"""What Tempest needs before it starts: environment, images, flavors, configuration."""

import dataclasses
from pathlib import Path

from openstack.connection import Connection

from devcloud import dashboard, images
from devcloud.clients import connect
from devcloud.configuration import common_values, render, write_file
from devcloud.install import ensure_environment
from devcloud.seed import upload_image
from devcloud.settings import Settings
from devcloud.steps import step

HERE = Path(__file__).resolve().parent

EXCLUDED = HERE / "excluded.txt"
"""Tests that are left out, a regular expression and its reason on a line."""

NEEDS_VLANS = HERE / "needs_vlans.txt"
"""Likewise, where the kernel has no VLAN devices."""

IMAGE_PROPERTIES = {
    # whose key and password it is; the tests log in as this account
    "os_admin_user": "debian",
    # some tests set a device of their server up by themselves; the flavors that they make have none
    "docker_capabilities": "NET_ADMIN",
}

# name: virtual processors, memory in MiB, disk in GiB
FLAVORS = {"tempest.1": (1, 256, 1), "tempest.2": (1, 384, 2)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How Tempest is set up.

    :ivar name: of the first image in the cloud; the second is that with ``-alt`` behind it.
    :ivar source: which of the devcloud's images the first one is.
    :ivar hosts: the compute hosts that take servers; all when there are none here.
    :ivar build_seconds: how long a server may take to be there, and to let a test log in.
    :ivar ssh_seconds: how long a test tries to log in.
    """

    name: str = "tempest"
    source: str = images.TEMPEST
    hosts: tuple[str, ...] = ()
    build_seconds: int = 300
    ssh_seconds: int = 180

    @property
    def images(self) -> dict[str, str]:
        """Two images of the cloud and what they are made from."""
        return {self.name: self.source, f"{self.name}-alt": "debian"}


WHOLE = Plan()
"""How Tempest runs unless told otherwise."""

STESTR_CONF = """[DEFAULT]
test_path = {library}/tempest/test_discover
top_dir = {library}
group_regex = ([^\\.]*\\.)*
"""


def folder(settings: Settings) -> Path:
    """Return where Tempest's environment, configuration and results lie."""
    return settings.folder / "tempest"


def environment_bin(settings: Settings) -> Path:
    """Return the scripts of Tempest's virtual environment."""
    return folder(settings) / "venv" / "bin"


def prepare(settings: Settings, plan: Plan = WHOLE) -> Path:
    """Install Tempest, make its images and flavors and write its configuration from the cloud.

    :return: the configuration.
    :raises StepFailed: a package, an image or an answer of the cloud can't be had.
    """
    ensure_environment(
        settings,
        folder(settings) / "venv",
        [HERE / "requirements.txt"],
        HERE / "constraints.txt",
    )
    admin = connect(settings, "admin")
    archive = images.archive_path(settings, plan.source)
    if not archive.exists():
        with step(f"image {plan.source}, built"):
            images.build_debian(settings, plan.source, archive)
    with step("images, flavors, configuration"):
        for name, source in plan.images.items():
            upload_image(admin, name, images.archive_path(settings, source), IMAGE_PROPERTIES)
        make_flavors(admin)
        return write_workspace(settings, admin, plan)


def make_flavors(admin: Connection) -> None:
    """Make Tempest's flavors."""
    for name, (processors, memory, disk) in FLAVORS.items():
        if admin.compute.find_flavor(name) is None:
            admin.compute.create_flavor(name=name, vcpus=processors, ram=memory, disk=disk)


def write_workspace(settings: Settings, admin: Connection, plan: Plan) -> Path:
    """Write Tempest's configuration as the cloud is now, and stestr's."""
    workspace = folder(settings)
    (workspace / "locks").mkdir(parents=True, exist_ok=True)
    (library,) = (workspace / "venv" / "lib").glob("python3*/site-packages")
    (workspace / ".stestr.conf").write_text(STESTR_CONF.format(library=library))
    config = workspace / "etc" / "tempest.conf"
    write_file(config, render("tempest.conf", configuration_values(settings, admin, plan)))
    return config


def newest_microversion(adapter: object) -> str:
    """Return the newest microversion an API has, as ``2.100``."""
    newest = adapter.get_endpoint_data().max_microversion  # type: ignore[attr-defined]
    return ".".join(map(str, newest))


def configuration_values(settings: Settings, admin: Connection, plan: Plan) -> dict[str, str]:
    """Return what the configuration's template asks for."""
    names = plan.hosts or tuple(host.name for host in settings.hosts)
    extensions = sorted(extension.alias for extension in admin.network.extensions())
    image, image_alt = (admin.image.find_image(name).id for name in plan.images)
    flavor, flavor_alt = (admin.compute.find_flavor(name).id for name in FLAVORS)
    return common_values(settings) | {
        "workspace": str(folder(settings)),
        "image": image,
        "image_alt": image_alt,
        "image_file": str(images.archive_path(settings, plan.source)),
        "flavor": flavor,
        "flavor_alt": flavor_alt,
        "hosts": str(len(names)),
        "several_hosts": str(len(names) > 1).lower(),
        "source_host": names[0],
        "target_host": names[-1],
        "compute_microversion": newest_microversion(admin.compute),
        "placement_microversion": newest_microversion(admin.placement),
        "public_network": admin.network.find_network("public").id,
        "network_extensions": ",".join(extensions),
        "horizon": str(settings.dashboard).lower(),
        "dashboard": dashboard.URL,
        "build_seconds": str(plan.build_seconds),
        "ssh_seconds": str(plan.ssh_seconds),
        "filters": common_values(settings)["scheduler_filters"],
    }
