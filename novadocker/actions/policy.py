# SPDX-License-Identifier: Apache-2.0
"""The operator's policy file, which maps alarms to actions on the server with the alarm.

The file is YAML. No action is executed unless it has ``enabled: true``. All functions but ``read``
are pure.
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
    """A policy file is malformed; the text names the key."""


@dataclass(frozen=True)
class Rule:
    """The action of an alarm.

    :ivar level: ``severity`` of the alarm
    :ivar undo: whether the end of the alarm reverts the action
    :ivar spared_projects: ids of projects whose servers are exempt
    :ivar flavors: for ``THROTTLE``, the name of the smaller flavor by the name of the server's own
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

    :ivar most_per_hour: largest number of actions in an hour
    """

    enabled: bool = False
    most_per_hour: int = 3
    rules: tuple[Rule, ...] = ()

    def find(self, labels: Mapping[str, str]) -> Rule | None:
        """Return the first rule for the labels of an alarm.

        None if no rule matches, the alarm is not of a server, or the policy is not enabled.
        """
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
    """Read the policy from a file.

    :raises PolicyError: the file is malformed
    :raises OSError: the file can't be read
    """
    with path.open("rb") as source:
        content = source.read(_LARGEST)
    try:
        return parse(yaml.safe_load(content))
    except yaml.YAMLError as error:
        raise PolicyError(f"{path}: {error}") from error


def parse(stored: Any) -> Policy:
    """Parse the content of a policy file.

    :raises PolicyError: the content is malformed or has an unknown key
    """
    content = _mapping(stored, _KEYS, "the policy")
    most = content.get("most_per_hour", Policy.most_per_hour)
    if type(most) is not int or most < 1:
        raise PolicyError(f"most_per_hour is {most!r}, which is not an integer above 0")
    rules = content.get("rules", [])
    if not isinstance(rules, list):
        raise PolicyError("rules is not a list")
    return Policy(_flag(content, "enabled"), most, tuple(map(_rule, rules)))


def _rule(stored: Any) -> Rule:
    content = _mapping(stored, _RULE_KEYS, "a rule")
    for key in ("alarm", "action"):
        if not isinstance(content.get(key), str):
            raise PolicyError(f"a rule has no {key}, or it is not a string")
    if content["action"] not in ACTIONS:
        raise PolicyError(f"action is {content['action']!r}, not one of {', '.join(ACTIONS)}")
    spared = content.get("spared_projects", [])
    if not isinstance(spared, list):
        raise PolicyError("spared_projects is not a list")
    flavors = content.get("flavors", {})
    if not isinstance(flavors, dict) or not all(map(_is_text, [*flavors, *flavors.values()])):
        raise PolicyError("flavors is not a mapping of names to names")
    if (content["action"] == THROTTLE) != bool(flavors):
        raise PolicyError(
            f"flavors is required for the action {THROTTLE}, and allowed for no other"
        )
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
        raise PolicyError(f"{what} is not a mapping")
    if unknown := stored.keys() - known:
        raise PolicyError(f"{what} has unknown keys: {', '.join(sorted(map(str, unknown)))}")
    return stored


def _flag(content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise PolicyError(f"{key} is {value!r}, neither true nor false")
    return value
