# SPDX-License-Identifier: Apache-2.0
"""Whom Keystone names as the contact of a project, as a metric: alarms find the owner by it."""

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from openstack.connection import Connection
from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from novadocker.actions import cloud
from novadocker.exporter.labels import KnownLabels

LOG = logging.getLogger(__name__)

PROPERTY = "contact"
"""The property of a project in Keystone that holds the address."""

METRIC = "novadocker_project_contact"

_EVERY_SECONDS = 300.0
# one address: whoever may set a property must not reach more people, or write a header
_ADDRESS = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,190}")


class Contacts(Collector):
    """Asks Keystone again and again, in a thread; what it said last stays while it is away.

    :param connection: to a cloud, with the right to list the projects
    """

    def __init__(self, connection: Connection) -> None:
        self._cloud = connection
        self._stopped = threading.Event()
        self._contacts: dict[str, str] = {}

    def start(self) -> None:
        """Begin to ask."""
        # a daemon: Keystone may keep it waiting
        threading.Thread(target=self._run, name="contacts", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def ask(self) -> None:
        """Ask once.

        :raises openstack.exceptions.SDKException: Keystone does not tell
        :raises keystoneauth1.exceptions.ClientException: the same, as it is away
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

    def _run(self) -> None:
        while True:
            try:
                self.ask()
            except cloud.ERRORS as error:
                LOG.error("Keystone does not tell the contacts of projects: %s", error)
            if self._stopped.wait(_EVERY_SECONDS):
                return


def contacts(projects: Iterable[Any]) -> dict[str, str]:
    """Return the contacts by the projects' ids; what is no single address is left out."""
    found = {}
    for project in projects:
        contact = project.get(PROPERTY)
        if contact is None:
            continue
        if isinstance(contact, str) and _ADDRESS.fullmatch(contact):
            found[project["id"]] = contact
        else:
            LOG.warning("The contact of project %s is no address: %r", project["id"], contact)
    return found
