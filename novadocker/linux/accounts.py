# SPDX-License-Identifier: Apache-2.0
"""Accounts of a container: password hashes and the lines of passwd(5) and shadow(5); pure."""

import ctypes
import os
import time

# the system's own: Python has no such module from 3.13 on
_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")
# crypt.h: large enough for struct crypt_data of any of its releases
_WORK_BYTES = 128 << 10
# crypt(5): sha512crypt, which every libc that images bring knows, even old ones and musl
_METHOD = "$6$"
_SALT_CHARACTERS = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SALT_LENGTH = 16
_DAY_SECONDS = 86400

_NEW_SHADOW_FIELDS = ["0", "99999", "7", "", "", ""]


def hash_password(password: str) -> str:
    """Return the salted hash of a password, in the form of crypt(5).

    :raises ValueError: crypt(3) takes no such password; what it was is not told
    """
    if "\0" in password:
        raise ValueError("a password can't have a zero byte")
    salt = "".join(_SALT_CHARACTERS[byte % 64] for byte in os.urandom(_SALT_LENGTH))
    work = ctypes.create_string_buffer(_WORK_BYTES)
    found = _load().crypt_r(password.encode(), f"{_METHOD}{salt}".encode(), work)
    if not found or not found.startswith(_METHOD.encode()):
        raise ValueError("crypt(3) refuses the password")
    return str(found.decode())


def today() -> int:
    """Return the day in days since 1970, as shadow(5) wants it."""
    return int(time.time()) // _DAY_SECONDS


def set_password(shadow: bytes, user: str, password_hash: str, day: int) -> bytes:
    """Return the content of /etc/shadow with a user's password replaced, or the user added.

    The runtime shim does the same for a container that does not run.
    """
    lines = shadow.splitlines(keepends=True)
    changed = [password_hash, str(day)]
    for number, line in enumerate(lines):
        name, *fields = line.rstrip(b"\n").split(b":")
        if name == user.encode():
            lines[number] = _line([name.decode(), *changed]) + b"".join(
                b":" + field for field in fields[2:]
            )
            lines[number] += b"\n"
            return b"".join(lines)
    if lines and not lines[-1].endswith(b"\n"):
        lines.append(b"\n")
    return b"".join(lines) + _line([user, *changed, *_NEW_SHADOW_FIELDS]) + b"\n"


def shadowed(passwd: bytes, user: str) -> bool:
    """Say whether there is an account whose password is in /etc/shadow."""
    for line in passwd.splitlines():
        name, *fields = line.split(b":")
        if name == user.encode():
            return fields[:1] == [b"x"]
    return False


def _line(fields: list[str]) -> bytes:
    return ":".join(fields).encode()


def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.crypt_r.restype = ctypes.c_char_p
        library.crypt_r.argtypes = [ctypes.c_char_p] * 3
        return library
    raise OSError(f"none of the libraries {', '.join(_LIBRARIES)} is there")
