# SPDX-License-Identifier: Apache-2.0
"""Forms of JSON values: what a request may contain; pure.

A form is a function that raises ``Refused`` unless a value has the form. The names of an object are
compared exactly, because the engine (Go's ``encoding/json``) ignores their case: a name that no
form lists is refused.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Form = Callable[[Any], None]

_NO_FIELDS: Mapping[str, Form] = {}


class Refused(Exception):
    """A request that the driver does not make; the text is the reason."""


def parse(data: bytes) -> Any:
    """Return the value of a JSON text.

    :raises Refused: the text is malformed, or an object has a name twice
    """
    try:
        return json.loads(data, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the JSON text is malformed: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused("an object of the JSON text has a name twice")
    return found


def _constant(name: str) -> None:
    raise Refused(f"{name} is no number of JSON")


def equal(*values: object) -> Form:
    """Return the form of a value that is one of ``values``."""
    # 1, 1.0 and True are equal in Python.
    texts = {json.dumps(value, sort_keys=True) for value in values}

    def form(value: Any) -> None:
        if json.dumps(value, sort_keys=True) not in texts:
            raise Refused(f"{_shown(value)} is not allowed")

    return form


def text(pattern: str) -> Form:
    """Return the form of a text that matches a pattern as a whole."""
    wanted = re.compile(pattern, re.DOTALL)

    def form(value: Any) -> None:
        if not isinstance(value, str) or not wanted.fullmatch(value):
            raise Refused(f"{_shown(value)} is not allowed")

    return form


def integer(least: int = 0) -> Form:
    """Return the form of an integer."""

    def form(value: Any) -> None:
        if type(value) is not int or value < least:
            raise Refused(f"{_shown(value)} is not an integer from {least}")

    return form


def array(item: Form) -> Form:
    """Return the form of an array."""

    def form(value: Any) -> None:
        if not isinstance(value, list):
            raise Refused(f"{_shown(value)} is not an array")
        for number, each in enumerate(value):
            _inside(str(number), item, each)

    return form


def fields(required: Mapping[str, Form], optional: Mapping[str, Form] = _NO_FIELDS) -> Form:
    """Return the form of an object with these names and no others."""
    known = {**required, **optional}

    def form(value: Any) -> None:
        if not isinstance(value, dict):
            raise Refused(f"{_shown(value)} is not an object")
        for name in required:
            if name not in value:
                raise Refused(f"{name} is missing")
        for name, each in value.items():
            if name not in known:
                raise Refused(f"{_shown(name)} is not allowed")
            _inside(name, known[name], each)

    return form


def mapping(name: str, value: str) -> Form:
    """Return the form of an object whose names and values match patterns."""
    names, values = re.compile(name), text(value)

    def form(found: Any) -> None:
        if not isinstance(found, dict):
            raise Refused(f"{_shown(found)} is not an object")
        for key, each in found.items():
            if not names.fullmatch(key):
                raise Refused(f"{_shown(key)} is not allowed")
            _inside(key, values, each)

    return form


def either(first: Form, *others: Form) -> Form:
    """Return the form of a value that has one of these forms."""

    def form(value: Any) -> None:
        for candidate in (first, *others):
            try:
                candidate(value)
            except Refused as error:
                last = error
            else:
                return
        raise last

    return form


def _inside(name: str, form: Form, value: Any) -> None:
    try:
        form(value)
    except Refused as error:
        raise Refused(f"{name}: {error}") from None


def _shown(value: Any) -> str:
    return f"{json.dumps(value):.80}"
