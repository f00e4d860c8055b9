"""Whether a call of a function is one of those that are right, as BFCL compares them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from culm.task.called import Call

# Of schemas in BFCL and in JSON schema.
TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "number": float, "boolean": bool,
    "array": list, "tuple": list, "dict": dict, "object": dict,
}  # fmt: skip
OPTIONAL = ""  # among the values of an argument: it may be left out
IGNORED = re.compile(r"[ ,./\-_*^]")


def all_match(
    calls: Sequence[Call], right: Sequence[Mapping[str, Any]], functions: Mapping[str, Any]
) -> bool:
    """Whether each call is another one of the right ones, in any order, and none is missing.

    right: `{name: {argument: [each right value]}}`, where "" says that it may be left out.
    functions: the parameters of each function by its name, as a schema.
    """
    if len(calls) != len(right):
        return False
    if not calls:
        return True
    first, rest = calls[0], calls[1:]
    return any(
        matches(first, wanted, functions)
        and all_match(rest, [*right[:place], *right[place + 1 :]], functions)
        for place, wanted in enumerate(right)
    )


def matches(call: Call, right: Mapping[str, Any], functions: Mapping[str, Any]) -> bool:
    """Whether a call is right: its name, each argument that must be there, no other one, and the
    type and value of each.

    Dots of a name may be underscores, since some APIs allow none.
    """
    ((name, wanted),) = right.items()
    if call.name not in (name, name.replace(".", "_")) or name not in functions:
        return False
    schema = functions[name]
    known: Mapping[str, Any] = schema.get("properties", {})
    needed = {key for key, values in wanted.items() if OPTIONAL not in values}
    given = call.arguments
    if not needed | set(schema.get("required", ())) <= set(given):
        return False
    return all(
        key in known and key in wanted and argument_matches(value, wanted[key], known[key])
        for key, value in given.items()
    )


def argument_matches(value: Any, right: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    """Whether a value has the type of its schema, or that of the right values, such as the name of
    a variable, and is one of them.

    An integer is a float, in lists too; in BFCL not in lists. A float is no integer.
    """
    value = list(value) if isinstance(value, tuple) else value
    expected = TYPES.get(str(schema.get("type")))
    values = [one for one in right if one != OPTIONAL]
    others = {type(one) for one in values}
    number = expected is float and type(value) is int
    if expected is not None and not number and type(value) not in {expected, *others}:
        return False
    return any(_equal(value, one) for one in right)


def _equal(value: Any, right: Any) -> bool:
    """Texts without case, spaces and some punctuation; objects by the right values of each key."""
    if isinstance(value, str) and isinstance(right, str):
        return _plain(value) == _plain(right)
    if isinstance(value, Mapping) and isinstance(right, Mapping):
        return _object_equal(value, right)
    if isinstance(value, list | tuple) and isinstance(right, list | tuple):
        return len(value) == len(right) and all(map(_equal, value, right))
    if isinstance(value, bool) or isinstance(right, bool):
        return value is right
    return bool(value == right)


def _object_equal(value: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    choices = {key: one if isinstance(one, list) else [one] for key, one in right.items()}
    if not all(key in value or OPTIONAL in one for key, one in choices.items()):
        return False
    return all(
        key in choices and any(_equal(one, other) for other in choices[key])
        for key, one in value.items()
    )


def _plain(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')
