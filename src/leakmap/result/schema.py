"""The schema of ``result.json``, as JSON Schema and as a page, both read off the types and their docstrings."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from leakmap.result.result import Result

_INTRODUCTION = """\
# result.json

    leakmap audit --model mlp,hidden=16 --image-size 16 --mode eval --attack linear --victims 4 --json     # 15 s

Written by every audit beside `report.html`; `--json` prints it, `leakmap.read_result` reads it. This page is made by
`make docs` from the types in `leakmap.result`, and so is the [JSON Schema](result.schema.json). Numbers that are not
finite are `null`.
"""
_FOLDER = """\
## The folder of an audit

    schema.json            the version of what lies here; another one is refused
    plan.json              what the folder belongs to; another audit is refused
    trials/KEY.safetensors one finished run: matched reconstructions and, in the header, scores; a run that failed lies
                           in KEY.failed.safetensors and says why
    victims.safetensors    network and pictures for worker processes
    control.safetensors    the same for the planted control
    provenance.json        when, with what and on which machine it was measured, and SHA-256 of what was measured
    result.json  report.html

It holds the audited pictures: treat it as you treat them.

## Exit codes

0, 1 and 2 always come with a result; no accident is taken for one.

| code | what happened |
|---|---|
| 0 | done; with `--gate LEVEL` the level is not reached, with `--baseline` nothing is worse |
| 1 | `--gate` is reached, or `defence_broken`; worse than `--baseline`; a check finds a wrong file; `watch --alarm` |
| 2 | with `--gate` or `--baseline`: the audit is inconclusive |
| 3 | wrong usage or input; code of your own that ended Python; a folder that cannot be written |
| 4 | no result for another reason: no room on the disk, no memory, or a mistake of leakmap |
| 130 | interrupted with Ctrl-C; the same command continues |
| 141 | nobody reads the output any more, as in `leakmap list \\| head` |

A mistake of leakmap is one sentence that says what to report; with `LEAKMAP_DEBUG=1` its traceback stands above it.
"""
_SECTION = re.compile(r"^(\w+):\n((?:    .*\n|\n)*)", re.M)
_ARGUMENT = re.compile(r"^    (\w+): (.*(?:\n     +.*)*)", re.M)


class _Described(GenerateJsonSchema):
    """Gives every object and each of its keys the words of its docstring."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """A title would only repeat the key."""
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Every key is always written."""
        return True

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        """As pydantic's, with words."""
        return _described(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> dict[str, Any]:
        """As pydantic's, with words."""
        return _described(super().dataclass_schema(schema), schema["cls"])


def schema_of(kind: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a type whose parts have words for every key in their docstrings."""
    found = kind.json_schema(mode="serialization", schema_generator=_Described)
    return {"$schema": _Described.schema_dialect, **found}


def result_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``result.json``."""
    return schema_of(TypeAdapter(Result))


def result_page() -> str:
    """The page docs/result.md: every key with its type and meaning, then the folder and the exit codes."""
    schema = result_schema()
    defined = schema["$defs"]
    parts = [_INTRODUCTION, _table(schema)]
    for name in _in_order(schema, defined):
        parts.append(f"## {name}\n\n{defined[name]['description']}\n\n{_table(defined[name])}")
    return "\n".join([*parts, _FOLDER])


def _described(schema: dict[str, Any], of: type) -> dict[str, Any]:
    """The same with the summary of a docstring, and its arguments at the keys that have no words yet."""
    text = inspect.getdoc(of) or ""
    schema["description"] = " ".join(text.split("\n\n")[0].replace("``", "`").split())
    keys = {} if is_dataclass(of) else {name: field.alias for name, field in of.model_fields.items() if field.alias}
    for name, words in _arguments(text):
        if (key := keys.get(name, name)) in schema["properties"]:
            schema["properties"][key].setdefault("description", words)
    return schema


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """Name and words of each argument of a docstring in Google's style."""
    sections = dict(_SECTION.findall(f"{text}\n"))
    for name, words in _ARGUMENT.findall(sections.get("Args", "")):
        yield name, " ".join(re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", words).replace("``", "`").split())


def _in_order(schema: Mapping[str, Any], defined: Mapping[str, Any]) -> list[str]:
    """The names of all objects, as they are met from the top."""
    found: dict[str, None] = {}
    for name in re.findall(r"#/\$defs/(\w+)", str(schema.get("properties"))):
        found |= dict.fromkeys([name, *_in_order(defined[name], defined)])
    return list(found)


def _table(schema: Mapping[str, Any]) -> str:
    rows = [
        f"| `{key}` | {_type(of)} | {of.get('description', '').replace('|', chr(92) + '|')} |"
        for key, of in schema["properties"].items()
    ]
    return "\n".join(["| key | type | |", "|---|---|---|", *rows, ""])


def _type(schema: Mapping[str, Any]) -> str:
    """A type in words."""
    if ref := schema.get("$ref"):
        name = ref.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[key]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {', '.join(_type(one) for one in schema['prefixItems'])}"
        return f"list of {_inner(schema.get('items', {}))}"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties", {})
        return f"object of {_inner(inner if isinstance(inner, Mapping) else {})}"
    return schema.get("type", "anything")


def _inner(schema: Mapping[str, Any]) -> str:
    return f"({_type(schema)})" if "anyOf" in schema else _type(schema)
