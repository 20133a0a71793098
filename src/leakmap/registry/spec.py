"""How an algorithm is written down: ``NAME[,key=value…]``."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from leakmap.errors import BadSetting, check_type


@dataclass(frozen=True)
class Spec:
    """How an algorithm is written down.

    Args:
        name: Of the algorithm.
        params: Settings that differ from its defaults.
    """

    name: str
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: "str | Spec") -> "Spec":
        """Reads ``NAME[,key=value…]``; values that look like JSON (numbers, true, false, null) are read as such.

        Raises:
            UsageError: it is no text, a part after the name is not ``key=value``, or a key comes twice.
        """
        if isinstance(text, Spec):
            return text
        check_type(text, str, "A specification", "text such as NAME,key=value, or a leakmap.Spec")
        name, *parts = text.split(",")
        params: dict[str, Any] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            key = key.strip()
            if not equals or not key:
                raise BadSetting(f"In {text!r}, the part {part!r} is not key=value; write NAME[,key=value…].")
            if key in params:
                raise BadSetting(f"In {text!r}, the setting {key!r} is given twice; give it once.")
            params[key] = _literal(value.strip())
        return cls(name.strip(), params)

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{key}={_text(value)}" for key, value in self.params.items())])


def _literal(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Tunable:
    """Where a rehearsal may look for a setting; stands in the setting's annotation.

    Args:
        low: Lowest value.
        high: Highest value.
        log: Whether orders of magnitude count alike.
        choices: The values of a setting that is no range; low and high are then unused.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = True
    choices: tuple[Any, ...] = ()


def near_misses(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one if any is close, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are: {', '.join(known) or 'none'}."
