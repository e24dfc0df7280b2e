# SPDX-License-Identifier: Apache-2.0
"""Connections to the cloud's APIs."""

import os

import openstack
from openstack.connection import Connection

from devcloud.settings import API_ADDRESS, REGION, Settings, load_secrets


def connect(settings: Settings, user: str) -> Connection:
    """Return a connection with the credentials of one of the cloud's users.

    :param user: ``admin`` or ``demo``; each has a project of the same name.
    """
    # The APIs are on this machine, so an HTTP proxy from the environment cannot reach them.
    for name in ("no_proxy", "NO_PROXY"):
        listed = os.environ.get(name, "").split(",")
        if API_ADDRESS not in listed:
            os.environ[name] = ",".join(filter(None, [*listed, API_ADDRESS]))
    return openstack.connect(
        auth_url=f"http://{API_ADDRESS}:5000/v3",
        username=user,
        password=load_secrets(settings)[user],
        project_name=user,
        user_domain_name="Default",
        project_domain_name="Default",
        region_name=REGION,
        identity_api_version="3",
        load_yaml_config=False,
        load_envvars=False,
    )
