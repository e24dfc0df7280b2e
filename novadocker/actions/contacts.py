# SPDX-License-Identifier: Apache-2.0
"""The contacts of projects in Keystone as a metric, by which alarms find the owner of a server."""

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from openstack.connection import Connection
from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from novadocker.actions import cloud
from novadocker.exporter.labels import KnownLabels
from novadocker.linux.threads import Repeated

LOG = logging.getLogger(__name__)

PROPERTY = "contact"
"""Name of the property of a Keystone project that holds the mail address."""

METRIC = "novadocker_project_contact"

_EVERY_SECONDS = 300.0
# The pattern matches a single address, so that the property can neither name further recipients nor
# inject a mail header.
_ADDRESS = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,190}")


class Contacts(Collector):
    """The metric of contacts, which a thread reads from Keystone at an interval.

    If Keystone does not answer, the last contacts stay.

    :param connection: connection to a cloud with the right to list the projects
    """

    def __init__(self, connection: Connection) -> None:
        self._cloud = connection
        self._repeated = Repeated("contacts", self._update, _EVERY_SECONDS)
        self._contacts: dict[str, str] = {}

    def start(self) -> None:
        """Start the thread."""
        self._repeated.start()

    def stop(self) -> None:
        """Stop the thread after the request that runs. Does not wait for it."""
        self._repeated.stop()

    def ask(self) -> None:
        """Read the contacts from Keystone once.

        :raises openstack.exceptions.SDKException: Keystone refuses the request
        :raises keystoneauth1.exceptions.ClientException: Keystone does not answer
        """
        self._contacts = contacts(self._cloud.identity.projects())

    def collect(self) -> Iterator[Metric]:
        """Yield one sample for each project that has a contact."""
        metric = Metric(METRIC, "The contact of a project, from Keystone.", "gauge")
        metric.samples = [
            Sample(METRIC, KnownLabels({"project": project, "contact": contact}), 1)
            for project, contact in self._contacts.items()
        ]
        yield metric

    def _update(self) -> None:
        try:
            self.ask()
        except cloud.ERRORS as error:
            LOG.error("Failed to read the contacts of projects from Keystone: %s", error)


def contacts(projects: Iterable[Any]) -> dict[str, str]:
    """Return the contacts by project id, without those that are not a single mail address."""
    found = {}
    for project in projects:
        contact = project.get(PROPERTY)
        if contact is None:
            continue
        if isinstance(contact, str) and _ADDRESS.fullmatch(contact):
            found[project["id"]] = contact
        else:
            LOG.warning(
                "Ignored the contact of project %s, which is not a single mail address: %r",
                project["id"],
                contact,
            )
    return found
