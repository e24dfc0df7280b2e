# SPDX-License-Identifier: Apache-2.0
"""Which alarm does what to the server it names: the operator's policy file; pure but for reading.

The file is YAML. Nothing is done unless it says ``enabled: true``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PAUSE = "pause"
THROTTLE = "throttle"
ACTIONS = (PAUSE, THROTTLE)

_LARGEST = 64 << 10
_KEYS = {"enabled", "most_per_hour", "rules"}
_RULE_KEYS = {"alarm", "action", "level", "undo", "spared_projects", "flavors"}


class PolicyError(Exception):
    """A policy file is not well-formed; the text says where."""


@dataclass(frozen=True)
class Rule:
    """What an alarm does.

    :ivar level: the alarm's ``severity``
    :ivar undo: whether the end of the alarm undoes it
    :ivar spared_projects: whose servers nothing is done to
    :ivar flavors: to throttle: the smaller flavor that a server gets, by the name of its own
    """

    alarm: str
    action: str
    level: str = "page"
    undo: bool = False
    spared_projects: frozenset[str] = frozenset()
    flavors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """A policy file.

    :ivar most_per_hour: how many servers something is done to at most
    """

    enabled: bool = False
    most_per_hour: int = 3
    rules: tuple[Rule, ...] = ()

    def find(self, labels: Mapping[str, str]) -> Rule | None:
        """Return the first rule for an alarm's labels, if it is one of a server."""
        if not self.enabled or not labels.get("uuid"):
            return None
        return next(
            (
                rule
                for rule in self.rules
                if (rule.alarm, rule.level) == (labels.get("alertname"), labels.get("severity"))
                and labels.get("project") not in rule.spared_projects
            ),
            None,
        )


def read(path: Path) -> Policy:
    """Return the policy of a file.

    :raises PolicyError: it is none
    :raises OSError: it can't be read
    """
    with path.open("rb") as source:
        content = source.read(_LARGEST)
    try:
        return parse(yaml.safe_load(content))
    except yaml.YAMLError as error:
        raise PolicyError(f"{path}: {error}") from error


def parse(stored: Any) -> Policy:
    """Return the policy that a file's content says.

    :raises PolicyError: it is none; a word that is not known is an error, not nothing
    """
    content = _mapping(stored, _KEYS, "the policy")
    most = content.get("most_per_hour", Policy.most_per_hour)
    if type(most) is not int or most < 1:
        raise PolicyError(f"most_per_hour is {most!r}, no number above 0")
    rules = content.get("rules", [])
    if not isinstance(rules, list):
        raise PolicyError("rules is no list")
    return Policy(_flag(content, "enabled"), most, tuple(map(_rule, rules)))


def _rule(stored: Any) -> Rule:
    content = _mapping(stored, _RULE_KEYS, "a rule")
    for key in ("alarm", "action"):
        if not isinstance(content.get(key), str):
            raise PolicyError(f"a rule has no {key}")
    if content["action"] not in ACTIONS:
        raise PolicyError(f"there is no action {content['action']!r}, but {', '.join(ACTIONS)}")
    spared = content.get("spared_projects", [])
    if not isinstance(spared, list):
        raise PolicyError("spared_projects is no list")
    flavors = content.get("flavors", {})
    if not isinstance(flavors, dict) or not all(map(_is_text, [*flavors, *flavors.values()])):
        raise PolicyError("flavors is no mapping of names")
    if (content["action"] == THROTTLE) != bool(flavors):
        raise PolicyError(f"flavors go with the action {THROTTLE}, which needs some")
    return Rule(
        alarm=content["alarm"],
        action=content["action"],
        level=str(content.get("level", Rule.level)),
        undo=_flag(content, "undo"),
        spared_projects=frozenset(map(str, spared)),
        flavors=flavors,
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _mapping(stored: Any, known: set[str], what: str) -> dict[str, Any]:
    if not isinstance(stored, dict):
        raise PolicyError(f"{what} is no mapping")
    if unknown := stored.keys() - known:
        raise PolicyError(f"{what} has unknown words: {', '.join(sorted(map(str, unknown)))}")
    return stored


def _flag(content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise PolicyError(f"{key} is {value!r}, not true or false")
    return value
