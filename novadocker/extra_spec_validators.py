# SPDX-License-Identifier: Apache-2.0
"""What makes nova-api refuse a flavor with wrong extra specs of ``docker:``.

Registered at Nova's entry point ``nova.api.extra_spec_validators``; API versions from 2.86 on
check. Imported where nova-api runs, so no engine or driver is needed there.
"""

from typing import Any

from nova import exception
from nova.api.validation.extra_specs import base

from novadocker import extra_specs


class Validator(base.ExtraSpecValidator):
    """Nova's validator, which has no notion of two numbers or of a list."""

    def validate(self, name: str, value: str) -> None:
        """Check a value; ValidationError, a 400 of the API, where it is wrong."""
        super().validate(name, value)
        try:
            extra_specs.ALL[name].parse(value)
        except ValueError as error:
            raise exception.ValidationError(f"Validation failed; {error}.") from error


def register() -> list[base.ExtraSpecValidator]:
    """Return a validator for each extra spec."""
    return [
        Validator(name=spec.name, description=spec.description, value=_value(spec))
        for spec in extra_specs.ALL.values()
    ]


def _value(spec: extra_specs.Spec) -> dict[str, Any]:
    match spec:
        case extra_specs.Number():
            return {"type": int, "min": spec.minimum, "max": spec.maximum}
        case extra_specs.Switch():
            return {"type": bool}
        case _:
            return {"type": str}
