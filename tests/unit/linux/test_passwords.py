# SPDX-License-Identifier: Apache-2.0
import ctypes

import pytest

from novadocker.linux import passwords


@pytest.mark.parametrize("password", ["secret", "pä\n ss:'$", "x" * 500])
def test_a_hash_is_of_the_password_and_salted(password: str) -> None:
    found, other = passwords.hash_password(password), passwords.hash_password(password)
    assert found != other
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype, crypt.argtypes = ctypes.c_char_p, [ctypes.c_char_p] * 2
    assert crypt(password.encode(), found.encode()) == found.encode()
    assert crypt(b"another", found.encode()) != found.encode()
    assert found.startswith("$6$")


@pytest.mark.parametrize("password", ["a\0b", "x" * 600])
def test_no_hash_of_what_crypt_does_not_take(password: str) -> None:
    with pytest.raises(ValueError, match="password") as caught:
        passwords.hash_password(password)
    assert password not in str(caught.value)
