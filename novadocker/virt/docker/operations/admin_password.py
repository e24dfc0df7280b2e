# SPDX-License-Identifier: Apache-2.0
"""The password of an instance's admin user."""

from __future__ import annotations

from dataclasses import asdict

from nova import exception as nova_exception
from nova import objects

from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.operations.services import Services


class AdminPassword:
    """Sets the passwords of admin users in the instances of one host."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def set(self, instance: objects.Instance, password: str) -> None:
        """Set the admin user's password, at the next start if the instance does not run.

        :raises SetAdminPasswdNotSupported: the image has no password file with the account
        """
        found = self._services.find(instance)
        login = identity.password_login(instance, instance.image_meta, password)
        if not found.pid:
            self._services.runtime.bind_container(found.id, instance.uuid, login=asdict(login))
        elif not self._services.guest_files.set_password(
            found.id, found.pid, login.user, login.password_hash, login.password_day
        ):
            raise nova_exception.SetAdminPasswdNotSupported()
