# SPDX-License-Identifier: Apache-2.0
"""What this host tells Neutron about ports that no agent of Neutron's looks after."""

from collections.abc import Iterable

from keystoneauth1 import exceptions as keystone_exceptions
from neutronclient.common import exceptions as neutron_exceptions
from nova import context as nova_context
from nova import objects
from nova.network import model as network_model
from nova.network import neutron
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

# neutron_lib.api.definitions.data_plane_status; the mechanism driver novadocker waits for it
_WIRED = {"port": {"data_plane_status": "ACTIVE"}}


def report_wired(instance: objects.Instance, vifs: Iterable[network_model.VIF]) -> None:
    """Tell Neutron that ports are wired, so that it has them ACTIVE and tells Nova.

    A report that fails is logged: the server keeps its network, and a boot that waits for
    Neutron ends with a fault that names the port.
    """
    for vif in vifs:
        try:
            client = neutron.get_client(nova_context.get_admin_context(), admin=True)
            client.update_port(vif["id"], _WIRED)
        except (
            neutron_exceptions.NeutronException,
            keystone_exceptions.ClientException,
        ) as error:
            LOG.warning(
                "Neutron did not take the report that port %s is wired: %s",
                vif["id"],
                error,
                instance=instance,
            )
