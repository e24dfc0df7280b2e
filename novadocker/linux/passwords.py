# SPDX-License-Identifier: Apache-2.0
"""Hashes of passwords, in the form of crypt(5), and the day of their change."""

import time

import crypt_r

# Because the C library of every image checks sha512crypt (crypt(5)), even an old one and musl, no
# newer method is chosen.
_METHOD = crypt_r.METHOD_SHA512
_METHOD_PREFIX = "$6$"
_DAY_SECONDS = 86400


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
