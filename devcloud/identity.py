# SPDX-License-Identifier: Apache-2.0
"""Accounts, roles and the service catalog."""

from collections.abc import Mapping

from devcloud.clients import connect
from devcloud.settings import API_ADDRESS, REGION, Settings, load_secrets
from devcloud.steps import step

SERVICE_USERS = ("nova", "neutron", "glance", "placement", "cinder")

CATALOG = {
    "nova": ("compute", f"http://{API_ADDRESS}:8774/v2.1"),
    "glance": ("image", f"http://{API_ADDRESS}:9292"),
    "neutron": ("network", f"http://{API_ADDRESS}:9696"),
    "placement": ("placement", f"http://{API_ADDRESS}:8778"),
}

VOLUMES = {"cinder": ("block-storage", f"http://{API_ADDRESS}:8776/v3")}
"""The further entry of a cloud with volumes."""


def ensure_accounts(settings: Settings) -> None:
    """Create the services' accounts, the tenant ``demo`` and the catalog. Idempotent."""
    made = settings.data / "accounts-made"
    catalog = CATALOG | VOLUMES if settings.volumes else CATALOG
    if made.exists() and made.read_text() == " ".join(catalog):
        return
    with step("accounts and catalog"):
        make_accounts(settings, catalog)
        made.write_text(" ".join(catalog))


def make_accounts(settings: Settings, catalog: Mapping[str, tuple[str, str]]) -> None:
    """Create the missing accounts, roles and catalog entries; delete Cinder's without Cinder."""
    passwords = load_secrets(settings)
    identity = connect(settings, "admin").identity
    roles = {role.name: role for role in identity.roles()}
    if "service" not in roles:
        roles["service"] = identity.create_role(name="service")
    project = identity.find_project("service") or identity.create_project(
        name="service", domain_id="default"
    )
    for name in SERVICE_USERS:
        user = identity.find_user(name) or identity.create_user(
            name=name,
            password=passwords["service"],
            default_project_id=project.id,
            domain_id="default",
        )
        # Other services require "service" for a service token and "admin" to act for a tenant.
        for role in ("admin", "service"):
            identity.assign_project_role_to_user(project, user, roles[role])
    demo = identity.find_project("demo") or identity.create_project(
        name="demo", domain_id="default"
    )
    tenant = identity.find_user("demo") or identity.create_user(
        name="demo", password=passwords["demo"], default_project_id=demo.id, domain_id="default"
    )
    identity.assign_project_role_to_user(demo, tenant, roles["member"])
    for name, (kind, url) in catalog.items():
        service = identity.find_service(name) or identity.create_service(name=name, type=kind)
        present = {endpoint.interface for endpoint in identity.endpoints(service_id=service.id)}
        for interface in {"public", "internal", "admin"} - present:
            identity.create_endpoint(
                service_id=service.id, interface=interface, url=url, region_id=REGION
            )
    for name in VOLUMES.keys() - catalog.keys():
        absent = identity.find_service(name)
        if absent is not None:
            identity.delete_service(absent)
