# SPDX-License-Identifier: Apache-2.0
"""Validators that make nova-api refuse a flavor with wrong extra specs of ``docker:``.

They are registered at Nova's entry point ``nova.api.extra_spec_validators`` and run from API
version 2.86 on. nova-api imports this module, so it needs neither the driver nor an engine.
"""

from typing import Any

from nova import exception
from nova.api.validation.extra_specs import base

from novadocker import extra_specs


class Validator(base.ExtraSpecValidator):
    """A validator that also checks pairs of numbers and lists, which Nova's own does not."""

    def validate(self, name: str, value: str) -> None:
        """Check the value of an extra spec.

        :raises ValidationError: the value is wrong; the API returns 400
        """
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
        case extra_specs.Choice():
            return {"type": str, "enum": list(spec.choices)}
        case _:
            return {"type": str}
