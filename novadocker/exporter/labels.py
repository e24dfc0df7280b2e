# SPDX-License-Identifier: Apache-2.0
"""Labels with their rendered text, because quoting them for each sample took half of a scrape."""

from __future__ import annotations

# An instance has far fewer devices, resources and kinds.
_MOST_DERIVED = 512


class KnownLabels(dict[str, str]):
    """The labels of a sample; immutable.

    :ivar text: the labels in Prometheus's text format, with braces; empty if there are no labels
    """

    def __init__(self, labels: dict[str, str]) -> None:
        super().__init__(labels)
        self._derived: dict[tuple[tuple[str, ...], tuple[str, ...]], KnownLabels] = {}
        pairs = ",".join(f'{name}="{_quoted(value)}"' for name, value in labels.items())
        self.text = f"{{{pairs}}}" if pairs else ""

    def with_(self, names: tuple[str, ...], values: tuple[str, ...]) -> KnownLabels:
        """Return these labels and further ones. The result is cached."""
        found = self._derived.get((names, values))
        if found is None:
            if len(self._derived) >= _MOST_DERIVED:
                self._derived.clear()
            found = KnownLabels({**self, **dict(zip(names, values, strict=True))})
            self._derived[names, values] = found
        return found


NONE = KnownLabels({})


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
