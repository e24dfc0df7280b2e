# SPDX-License-Identifier: Apache-2.0
"""The prerequisites of Tempest: environment, images, flavors and configuration."""

import dataclasses
from pathlib import Path

from openstack.connection import Connection

from devcloud import dashboard, images
from devcloud.clients import connect
from devcloud.configuration import common_values, render, write_file
from devcloud.install import ensure_environment
from devcloud.seed import make_flavors, upload_image
from devcloud.settings import Settings
from devcloud.steps import step

HERE = Path(__file__).resolve().parent

EXCLUDED = HERE / "excluded.txt"
"""List of excluded tests, a regular expression and its reason per line."""

NEEDS_VLANS = HERE / "needs_vlans.txt"
"""List of tests that are excluded where the kernel has no VLAN devices."""

IMAGE_PROPERTIES = {
    # The account that gets the key and the password; the tests log in to it.
    "os_admin_user": "debian",
    # Some tests configure a device of their server, and the flavors that they create lack the
    # capability.
    "docker_capabilities": "NET_ADMIN",
}

# name: virtual processors, memory in MiB, disk in GiB
FLAVORS = {"tempest.1": (1, 256, 1), "tempest.2": (1, 384, 2)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The set-up of a Tempest run.

    :ivar name: name of the first image in the cloud; the second's is the same with ``-alt``
        appended.
    :ivar source: devcloud's name of the first image.
    :ivar hosts: the compute hosts for servers; empty means all hosts.
    :ivar build_seconds: timeout of a server's build, and of a server's first login.
    :ivar ssh_seconds: timeout of a login.
    """

    name: str = "tempest"
    source: str = images.TEMPEST
    hosts: tuple[str, ...] = ()
    build_seconds: int = 300
    ssh_seconds: int = 180

    @property
    def images(self) -> dict[str, str]:
        """The names of Tempest's two images and of their sources."""
        return {self.name: self.source, f"{self.name}-alt": "debian"}


WHOLE = Plan()
"""The set-up of a full run."""

STESTR_CONF = """[DEFAULT]
test_path = {library}/tempest/test_discover
top_dir = {library}
group_regex = ([^\\.]*\\.)*
"""


def folder(settings: Settings) -> Path:
    """Return the directory of Tempest's environment, configuration and results."""
    return settings.folder / "tempest"


def environment_bin(settings: Settings) -> Path:
    """Return the directory of the programs of Tempest's virtual environment."""
    return folder(settings) / "venv" / "bin"


def prepare(settings: Settings, plan: Plan = WHOLE) -> Path:
    """Install Tempest, create its images and flavors and write its configuration.

    :return: the path of the configuration.
    :raises StepFailed: a package cannot be installed, or an image cannot be built.
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
        make_flavors(admin, FLAVORS)
        return write_workspace(settings, admin, plan)


def write_workspace(settings: Settings, admin: Connection, plan: Plan) -> Path:
    """Write stestr's configuration, and Tempest's for the cloud's present state."""
    workspace = folder(settings)
    (workspace / "locks").mkdir(parents=True, exist_ok=True)
    (library,) = (workspace / "venv" / "lib").glob("python3*/site-packages")
    (workspace / ".stestr.conf").write_text(STESTR_CONF.format(library=library))
    config = workspace / "etc" / "tempest.conf"
    write_file(config, render("tempest.conf", configuration_values(settings, admin, plan)))
    return config


def newest_microversion(adapter: object) -> str:
    """Return the newest microversion of an API, in the form ``2.100``."""
    newest = adapter.get_endpoint_data().max_microversion  # type: ignore[attr-defined]
    return ".".join(map(str, newest))


def configuration_values(settings: Settings, admin: Connection, plan: Plan) -> dict[str, str]:
    """Return the values of the configuration's template."""
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
        "cinder": str(settings.volumes).lower(),
        "volume_microversion": newest_microversion(admin.block_storage)
        if settings.volumes
        else "3.0",
        "public_network": admin.network.find_network("public").id,
        "network_extensions": ",".join(extensions),
        "horizon": str(settings.dashboard).lower(),
        "dashboard": dashboard.URL,
        "build_seconds": str(plan.build_seconds),
        "ssh_seconds": str(plan.ssh_seconds),
        "filters": common_values(settings)["scheduler_filters"],
    }
