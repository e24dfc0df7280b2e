# SPDX-License-Identifier: Apache-2.0
"""An instance's identity: its files for /etc and its logins; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nova import objects

from novadocker import exception
from novadocker.linux import passwords
from novadocker.privsep.guest import runtime
from novadocker.privsep.guest.runtime import Login
from novadocker.runtime import record

_LOCAL_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
# glibc ignores further ones (resolv.conf(5), MAXNS).
_MAX_NAMESERVERS = 3
# The kernel refuses longer host names (HOST_NAME_MAX).
_MAX_HOSTNAME = 64


def kernel_hostname(hostname: str) -> str:
    """Return a host name that the kernel accepts: without its domain if it is too long."""
    return (
        hostname if len(hostname) <= _MAX_HOSTNAME else hostname.partition(".")[0][:_MAX_HOSTNAME]
    )


def etc_files(
    instance_uuid: str,
    hostname: str,
    domain: str,
    addresses: Sequence[str],
    nameservers: Iterable[str],
) -> dict[str, bytes]:
    """Return the files for an instance's /etc, by name.

    The machine id is the instance's UUID, which systemd also reads from the firmware of a virtual
    machine. It does not change in a rebuild.

    :param domain: appended to a host name that has no domain; may be empty
    :param addresses: the instance's addresses without prefix length; its names resolve to each
    :param nameservers: in order of preference; if empty, the image's resolv.conf is kept
    """
    short, _, rest = hostname.partition(".")
    domain = rest or domain
    names = f"{short}.{domain} {short}" if domain else short
    own = addresses or ("127.0.1.1",)
    files = {
        "hostname": f"{kernel_hostname(hostname)}\n",
        "machine-id": instance_uuid.replace("-", "") + "\n",
        "hosts": _LOCAL_HOSTS + "".join(f"{address}\t{names}\n" for address in own),
    }
    servers = list(nameservers)[:_MAX_NAMESERVERS]
    if servers:
        search = f"search {domain}\n" if domain else ""
        files["resolv.conf"] = search + "".join(f"nameserver {ip}\n" for ip in servers)
    return {name: text.encode() for name, text in files.items()}


def admin_user(image_meta: objects.ImageMeta) -> str:
    """Return the account that gets the keys and the password.

    It is the image's ``os_admin_user``, or root.

    :raises InvalidImage: the property is not a valid account name
    """
    user = str(image_meta.properties.get("os_admin_user") or "root")
    if not runtime.is_user_name(user):
        raise exception.InvalidImage(
            image_id=image_meta.id, reason="its property os_admin_user is not a user name"
        )
    return user


def login(
    instance: objects.Instance, image_meta: objects.ImageMeta, admin_password: str | None
) -> Login | None:
    """Return the login of a new instance; None if it has neither a key pair nor a password.

    :raises InvalidImage: the image's ``os_admin_user`` is not a valid account name
    :raises RequestRefused: the key pair or the password is invalid
    """
    keys = _keys(instance)
    if admin_password:
        return replace(password_login(instance, image_meta, admin_password), keys=keys)
    return Login(admin_user(image_meta), keys) if keys else None


def password_login(
    instance: objects.Instance, image_meta: objects.ImageMeta, admin_password: str
) -> Login:
    """Return the login with a new password and without keys. Raises as ``login`` does."""
    try:
        hashed = passwords.hash_password(admin_password)
    except ValueError as error:
        raise exception.RequestRefused(instance_uuid=instance.uuid, reason=str(error)) from error
    return Login(admin_user(image_meta), b"", hashed, passwords.today())


def _keys(instance: objects.Instance) -> bytes:
    keys = (instance.key_data or "").strip()
    # A key pair of type x509 is a certificate for Windows.
    if not keys or keys.startswith("-----BEGIN"):
        return b""
    content = keys.encode() + b"\n"
    if len(content) > record.LARGEST_KEYS or b"\0" in content:
        raise exception.RequestRefused(
            instance_uuid=instance.uuid,
            reason=f"the key pair is malformed or larger than {record.LARGEST_KEYS} bytes",
        )
    return content
