# SPDX-License-Identifier: Apache-2.0
"""JSON, by the C functions of Python's package ``json``.

Every start of a container waits for the import of this module. The package itself compiles regular
expressions when it is imported, which takes longer than the start of Python. So this module calls
the functions that the package calls, and the package where Python lacks them.
"""


def parse(content: bytes) -> object:
    """Return the value of a JSON document.

    :raises ValueError: the document is malformed, or nested more deeply than Python allows
    """
    text = content.decode().strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError) as error:
        # Until Python 3.12 the function raises SystemError if json.decoder, which has its
        # exception, is not imported.
        raise ValueError("the document is malformed") from error
    except RecursionError as error:
        raise ValueError("the document is nested too deeply") from error
    if end != len(text):
        raise ValueError("the document contains more than one value")
    return value


def serialize(value: object) -> bytes:
    """Return a value as a JSON document in ASCII.

    :raises ValueError: JSON has no form for the value
    """
    return "".join(_encode(value, 0)).encode("ascii")


def _refuse(value: object) -> object:
    raise ValueError(f"JSON has no form for {value!r:.100}")


class _Options:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse)


try:
    import _json

    _scan = _json.make_scanner(_Options)  # type: ignore[arg-type]
    _encode = _json.make_encoder(
        None, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, False
    )
except (ImportError, AttributeError, TypeError):
    import json

    _decoder = json.JSONDecoder(parse_constant=_refuse)
    _encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_refuse)
    _scan = _decoder.scan_once  # type: ignore[attr-defined]

    def _encode(value: object, _level: int) -> tuple[str, ...]:  # type: ignore[misc]
        return (_encoder.encode(value),)
