# SPDX-License-Identifier: Apache-2.0
"""The cloud's APIs, as the operator's programs ask them."""

import openstack
from keystoneauth1.exceptions import ClientException
from openstack.connection import Connection
from openstack.exceptions import SDKException

ERRORS = (SDKException, ClientException)
"""What an API that refuses, fails, is away or does not answer raises."""

_ANSWER_SECONDS = 60.0


def connect() -> Connection:
    """Connect to the cloud of OS_CLOUD, or of the other variables of openstacksdk.

    What it is asked raises ``ERRORS``, at the latest when an API is silent for a minute.
    """
    return openstack.connect(api_timeout=_ANSWER_SECONDS)
