# SPDX-License-Identifier: Apache-2.0
"""The flavors, images, volume types, networks and key pair of a new cloud."""

from collections.abc import Mapping
from pathlib import Path

from openstack.connection import Connection
from openstack.exceptions import ConflictException

from devcloud import database, volumes
from devcloud.clients import connect
from devcloud.compute_user import run_checked
from devcloud.images import SEEDED, Archives, archive_path
from devcloud.settings import FLOATING_GATEWAY, FLOATING_NETWORK, Settings
from devcloud.steps import run_in_parallel, step

# name: virtual processors, memory in MiB, disk in GiB
FLAVORS = {"d1.tiny": (1, 256, 1), "d1.small": (1, 512, 5), "d1.medium": (2, 1024, 10)}

DEFAULT_POOL = "10.2.0.0/16"

TUNNELS = {"ovs": "vxlan", "ovn": "geneve"}
"""The provider network type of the tenant's first network, by kind of network."""

POOL = {"start": "172.24.4.10", "end": "172.24.4.250"}


SOURCE_PROPERTY = "devcloud_archive"
"""The image property that names the image's archive; upload_image compares it."""


def seed_state(settings: Settings) -> str:
    """Return the names of the archives, hosts and volume types that the seeds are made from."""
    archives = (archive_path(settings, name).name for name in SEEDED)
    types = volumes.TYPES if settings.volumes else ()
    return " ".join([*archives, *(host.name for host in settings.hosts), *types])


def is_seeded(settings: Settings) -> bool:
    """Return True if the seeds are complete and made from the present sources."""
    done = settings.data / "seeded"
    return done.exists() and done.read_text() == seed_state(settings)


def key_file(settings: Settings) -> Path:
    """Return the path of the private key of the tenant's key pair ``demo``."""
    return settings.folder / "demo_key"


def seed(settings: Settings, archives: Archives) -> None:
    """Create the missing flavors, images, networks and the key pair."""
    admin, demo = connect(settings, "admin"), connect(settings, "demo")

    def networks() -> None:
        with step("networks, security group, key pair"):
            make_networks(admin, demo.current_project_id, TUNNELS[settings.network])
            open_security_group(demo)
            make_key_pair(settings, demo)

    def hosts() -> None:
        with step("compute hosts in their cell"):
            nova = ("nova-manage", "--config-file", f"{settings.etc}/nova/nova.conf")
            database.manage(settings, "discover hosts", *nova, "cell_v2", "discover_hosts")

    with step("flavors"):
        make_flavors(admin, FLAVORS)
    if settings.volumes:
        with step("volume types"):
            volumes.make_types(admin)
    run_in_parallel(networks, hosts)
    for name in SEEDED:
        with step(f"image {name}"):
            upload_image(admin, name, archives.wait_for(name))
    (settings.data / "seeded").write_text(seed_state(settings))


def make_flavors(admin: Connection, flavors: Mapping[str, tuple[int, int, int]]) -> None:
    """Create the missing flavors.

    :param flavors: virtual processors, memory in MiB and disk in GiB by name.
    """
    for name, (processors, memory, disk) in flavors.items():
        if admin.compute.find_flavor(name) is None:
            admin.compute.create_flavor(name=name, vcpus=processors, ram=memory, disk=disk)


def upload_image(
    admin: Connection, name: str, archive: Path, properties: Mapping[str, str] | None = None
) -> None:
    """Upload an archive as a public image, in place of an image of an older archive.

    :param properties: further properties of the image.
    """
    further = properties or {}
    made_from = " ".join([archive.name, *(f"{key}={value}" for key, value in further.items())])
    old = list(admin.image.images(name=name, owner=admin.current_project_id))
    for image in old:
        if image.status == "active" and image.properties.get(SOURCE_PROPERTY) == made_from:
            return
    admin.create_image(
        name,
        filename=str(archive),
        container_format="docker",
        disk_format="raw",
        visibility="public",
        meta={SOURCE_PROPERTY: made_from, **further},
        wait=True,
        timeout=300,
    )
    for image in old:
        admin.image.delete_image(image)


def make_networks(admin: Connection, project: str, tunnel: str) -> None:
    """Create the tenant's networks, the network of the floating addresses and the router.

    :param project: id of the tenant's project.
    :param tunnel: the type of the network ``private``.
    """
    network = admin.network
    public = network.find_network("public") or network.create_network(
        name="public",
        is_router_external=True,
        is_default=True,
        provider_network_type="flat",
        provider_physical_network="public",
    )
    if network.find_subnet("public") is None:
        network.create_subnet(
            name="public",
            network_id=public.id,
            cidr=FLOATING_NETWORK,
            ip_version=4,
            gateway_ip=FLOATING_GATEWAY,
            is_dhcp_enabled=False,
            allocation_pools=[POOL],
        )
    # openstack server create --network auto takes a subnet from this pool.
    if network.find_subnet_pool("default") is None:
        network.create_subnet_pool(
            name="default",
            is_default=True,
            is_shared=True,
            prefixes=[DEFAULT_POOL],
            default_prefix_length=26,
        )
    router = network.find_router("router") or network.create_router(
        name="router", project_id=project, external_gateway_info={"network_id": public.id}
    )
    provider: dict[str, dict[str, object]] = {
        "private": {"provider_network_type": tunnel},
        "private-vlan": {
            "provider_network_type": "vlan",
            "provider_physical_network": "physvlan",
        },
    }
    subnets: dict[str, tuple[str, dict[str, object]]] = {
        "private": ("private", {"ip_version": 4, "cidr": "10.0.0.0/24"}),
        "private-v6": (
            "private",
            {
                "ip_version": 6,
                "cidr": "fd00:10::/64",
                "ipv6_ra_mode": "slaac",
                "ipv6_address_mode": "slaac",
            },
        ),
        "private-vlan": ("private-vlan", {"ip_version": 4, "cidr": "10.1.0.0/24"}),
    }
    for name, attributes in provider.items():
        if network.find_network(name) is None:
            network.create_network(name=name, project_id=project, **attributes)
    for name, (parent, attributes) in subnets.items():
        subnet = network.find_subnet(name) or network.create_subnet(
            name=name,
            network_id=network.find_network(parent).id,
            project_id=project,
            **attributes,
        )
        attached = network.ports(device_id=router.id)
        if not any(ip["subnet_id"] == subnet.id for port in attached for ip in port.fixed_ips):
            network.add_interface_to_router(router, subnet_id=subnet.id)


def open_security_group(demo: Connection) -> None:
    """Allow ping and SSH to servers in the tenant's default security group. Idempotent."""
    group = demo.network.find_security_group("default", project_id=demo.current_project_id)
    for family, ping in (("IPv4", "icmp"), ("IPv6", "ipv6-icmp")):
        for protocol, port in ((ping, None), ("tcp", 22)):
            try:
                demo.network.create_security_group_rule(
                    security_group_id=group.id,
                    direction="ingress",
                    ether_type=family,
                    protocol=protocol,
                    port_range_min=port,
                    port_range_max=port,
                )
            except ConflictException:
                # The rule exists already.
                continue


def make_key_pair(settings: Settings, demo: Connection) -> None:
    """Create the tenant's key pair, unless both of its halves exist."""
    path = key_file(settings)
    pair = demo.compute.find_keypair("demo")
    if pair is not None and path.exists():
        return
    if pair is not None:
        demo.compute.delete_keypair(pair)
    run_keygen(path)
    demo.compute.create_keypair(name="demo", public_key=path.with_suffix(".pub").read_text())


def run_keygen(path: Path) -> None:
    """Create an SSH key without a passphrase."""
    path.unlink(missing_ok=True)
    run_checked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "devcloud", "-f", path])
