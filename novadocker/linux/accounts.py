# SPDX-License-Identifier: Apache-2.0
"""Accounts of a container: password hashes and the lines of passwd(5) and shadow(5); pure."""

import time

import crypt_r

# Because the C library of every image checks sha512crypt (crypt(5)), even an old one and musl, no
# newer method is chosen.
_METHOD = crypt_r.METHOD_SHA512
_METHOD_PREFIX = "$6$"
_DAY_SECONDS = 86400

_NEW_SHADOW_FIELDS = (b"0", b"99999", b"7", b"", b"", b"")


def hash_password(password: str) -> str:
    """Return the salted hash of a password, in the form of crypt(5).

    :raises ValueError: crypt(3) refuses the password, which the fault does not contain
    """
    if "\0" in password:
        raise ValueError("A password cannot contain a zero byte.")
    try:
        found: str = crypt_r.crypt(password, crypt_r.mksalt(_METHOD))
    except OSError:
        found = ""
    # Because some releases of libxcrypt return a string that is not a hash on a failure, the prefix
    # is checked, too.
    if not found.startswith(_METHOD_PREFIX):
        raise ValueError("crypt(3) refuses the password.")
    return found


def today() -> int:
    """Return the current day as shadow(5) counts days: since 1970-01-01."""
    return int(time.time()) // _DAY_SECONDS


def set_password(shadow: bytes, user: str, password_hash: str, day: int) -> bytes:
    """Return the content of /etc/shadow with a user's password replaced, or the user added.

    The runtime shim has the same function for a container that is not running.
    """
    # Because the C library ends a line at a line feed alone, splitlines() is not used.
    lines = shadow.removesuffix(b"\n").split(b"\n") if shadow else []
    changed = [user.encode(), password_hash.encode(), str(day).encode()]
    for number, line in enumerate(lines):
        name, *fields = line.split(b":")
        if name == user.encode():
            lines[number] = b":".join([*changed, *fields[2:]])
            break
    else:
        lines.append(b":".join([*changed, *_NEW_SHADOW_FIELDS]))
    return b"\n".join(lines) + b"\n"


def shadowed(passwd: bytes, user: str) -> bool:
    """Return True if a user exists whose password is in /etc/shadow."""
    for line in passwd.split(b"\n"):
        name, *fields = line.split(b":")
        if name == user.encode():
            return fields[:1] == [b"x"]
    return False
