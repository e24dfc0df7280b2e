# SPDX-License-Identifier: Apache-2.0
"""The connection of the operator's programs to the cloud's APIs."""

import openstack
from keystoneauth1.exceptions import ClientException
from openstack.connection import Connection
from openstack.exceptions import SDKException

ERRORS = (SDKException, ClientException)
"""The exceptions of a request that an API refuses, fails or does not answer."""

_ANSWER_SECONDS = 60.0


def connect() -> Connection:
    """Connect to the cloud that OS_CLOUD or the other variables of openstacksdk name.

    Requests on the connection raise ``ERRORS``, also if an API sends nothing for a minute.
    """
    return openstack.connect(api_timeout=_ANSWER_SECONDS)
