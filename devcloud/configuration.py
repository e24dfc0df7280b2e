# SPDX-License-Identifier: Apache-2.0
"""The configuration files of all services, rendered from ``templates/``."""

import grp
import os
import shutil
import string
from pathlib import Path

from devcloud import ovn
from devcloud.network import flat_interface
from devcloud.settings import (
    API_ADDRESS,
    CHECKOUT,
    COMPUTE_USER,
    REGION,
    Host,
    Settings,
    load_secrets,
)

TEMPLATES = Path(__file__).resolve().parent / "templates"

SCHEDULER_FILTERS = (
    "ComputeFilter",
    "ComputeCapabilitiesFilter",
    "ImagePropertiesFilter",
    "ServerGroupAntiAffinityFilter",
    "ServerGroupAffinityFilter",
    "SameHostFilter",
    "DifferentHostFilter",
)
"""Nova's default filters, and two by which a tenant selects the host by another server."""

NETWORK_VALUES = {
    "ovs": {
        "mechanism": "openvswitch",
        "tunnel": "vxlan",
        "router_plugin": "router",
    },
    "ovn": {
        "mechanism": "ovn",
        "tunnel": "geneve",
        "router_plugin": "ovn-router",
    },
}
"""The values of Neutron's server, for each kind of network."""

RUNTIME_SHIM = CHECKOUT / "novadocker" / "runtime" / "novadocker-runtime"


def render(template: str, values: dict[str, str]) -> str:
    """Return a template with its names substituted.

    :raises KeyError: the template has a name that is not in ``values``.
    """
    return string.Template((TEMPLATES / template).read_text()).substitute(values)


def common_values(settings: Settings) -> dict[str, str]:
    """Return the values that any template may use."""
    passwords = load_secrets(settings)
    values = {
        "api": API_ADDRESS,
        "ovn_northbound": ovn.connection("nb"),
        "ovn_southbound": ovn.connection("sb"),
        "region": REGION,
        "data": str(settings.data),
        "run": str(settings.run),
        "bin": str(settings.bin),
        "paste": str(settings.venv / "etc"),
        "compute_user": COMPUTE_USER,
        "scheduler_filters": ",".join(SCHEDULER_FILTERS),
        "metadata_secret": passwords["metadata"],
        "service_password": passwords["service"],
        "database_password": passwords["database"],
        "rabbit_password": passwords["rabbit"],
        "admin_password": passwords["admin"],
        "demo_password": passwords["demo"],
        "messaging": render("fragments/messaging.ini", {}),
    }
    for user in ("placement", "neutron", "nova", "cinder"):
        values[f"{user}_credentials"] = render("fragments/credentials.ini", values | {"user": user})
    return values


def service_values(values: dict[str, str], user: str, database: str) -> dict[str, str]:
    """Return the values of one service, with its own account and database."""
    credentials = render("fragments/credentials.ini", values | {"user": user})
    return values | {
        "authtoken": render("fragments/authtoken.ini", values | {"credentials": credentials}),
        "database": render("fragments/database.ini", values | {"database": database}),
    }


def host_values(settings: Settings, values: dict[str, str], host: Host) -> dict[str, str]:
    """Return the values of one compute host."""
    return values | {
        "host": host.name,
        "address": host.address,
        # Connections of nova-serialproxy to another host come from the link's own address.
        "console_proxies": ", ".join(filter(None, (API_ADDRESS, host.address, host.gateway))),
        "tunnel_address": host.tunnel_address,
        "host_data": str(settings.host_data(host)),
        "host_etc": str(settings.host_etc(host)),
        "host_run": str(settings.host_run(host)),
        "flat_interface": flat_interface(host),
        # Because the hosts differ, every test of two hosts covers both firewall drivers.
        "firewall_driver": "openvswitch" if host == settings.hosts[0] else "iptables_hybrid",
        "engine_socket": str(settings.engine_socket(host)),
        "lxcfs_folder": str(settings.lxcfs_folder(host)),
        "runtime_shim": str(RUNTIME_SHIM),
        "compute_driver": settings.compute_driver,
    }


def write_file(path: Path, text: str, *, mode: int = 0o600, group: int = 0) -> None:
    """Write a file that may hold passwords."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    os.chown(path, 0, group)
    path.chmod(mode)


def write_configuration(settings: Settings) -> None:
    """Write all files below ``etc`` and the user's clients' files."""
    etc = settings.etc
    values = common_values(settings)
    values["nova"] = render("fragments/nova.ini", values)
    nova = service_values(values, "nova", "nova") | {
        "api_database": render("fragments/database.ini", values | {"database": "nova_api"})
    }
    for target, filled in {
        "mariadb.cnf": values,
        "rabbitmq.conf": values,
        "rabbitmq-plugins": values,
        "uwsgi.ini": values,
        "registry.yml": values,
        "keystone/keystone.conf": service_values(values, "keystone", "keystone"),
        "glance/glance-api.conf": service_values(values, "glance", "glance"),
        "placement/placement.conf": service_values(values, "placement", "placement"),
        "nova/nova.conf": nova,
        "neutron/neutron.conf": service_values(values, "neutron", "neutron")
        | NETWORK_VALUES[settings.network],
        "neutron/ml2_conf.ini": values | NETWORK_VALUES[settings.network],
    }.items():
        write_file(etc / target, render(Path(target).name, filled))
    if settings.volumes:
        cinder = service_values(values, "cinder", "cinder")
        write_file(etc / "cinder" / "cinder.conf", render("cinder.conf", cinder))
    if settings.dashboard:
        local = etc / "horizon" / "local"
        values["dashboard_folder"] = str(settings.dashboard_folder)
        write_file(local / "__init__.py", "")
        write_file(local / "local_settings.py", render("horizon-settings", values))
    # Nova takes the first file of its list for the paste file, so that lies beside nova.conf.
    shutil.copy(settings.venv / "etc" / "nova" / "api-paste.ini", etc / "nova")
    for host in settings.hosts:
        write_host_configuration(settings, host, host_values(settings, values, host))
    write_client_files(settings, values)


def write_host_configuration(settings: Settings, host: Host, values: dict[str, str]) -> None:
    """Write one compute host's files; nova-compute's belong to its group, which can read them."""
    group = grp.getgrnam(COMPUTE_USER).gr_gid
    for template in sorted((TEMPLATES / "host").iterdir()):
        for_compute = template.name.startswith(("nova-compute", "ssh_config"))
        write_file(
            settings.host_etc(host) / template.name,
            render(f"host/{template.name}", values),
            mode=0o640 if for_compute else 0o600,
            group=group if for_compute else 0,
        )


def write_client_files(settings: Settings, values: dict[str, str]) -> None:
    """Write admin-openrc, demo-openrc and clouds.yaml to the state directory."""
    for user in ("admin", "demo"):
        account = {"user": user, "project": user, "password": values[f"{user}_password"]}
        write_file(settings.folder / f"{user}-openrc", render("openrc", values | account))
    write_file(settings.folder / "clouds.yaml", render("clouds.yaml", values))
