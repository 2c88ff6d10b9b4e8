"""Plain data and the struct type it should fit in; out comes every mistake, each on one line.

msgspec stops at the first mistake and names neither the value nor what is allowed; whoever edits a deployment wants all of that.
The types stay the one source of truth: this reads the same constraints that `msgspec.convert` enforces.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from msgspec import UNSET, inspect

SHOWN_CHARACTERS = 60
UNBOUNDED = 2**53
"""an upper bound that only keeps numbers exact in JSON: not worth a word unless it is exceeded"""


def mistakes(value: object, struct: type, path: str) -> list[str]:
    """`path: got …; must be …`, one line each. Empty: only what a struct refuses as a whole is left to find."""
    return list(_check(value, _described(struct), path))


@functools.cache
def _described(struct: type) -> inspect.Type:
    """The same for every value, and four fifths of the time of a reconcile with nothing to do if it were made anew."""
    return inspect.type_info(struct)


def shown(value: object) -> str:
    """The value as JSON on one line, shortened; dates and the like as text."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _check(value: object, kind: inspect.Type, path: str) -> Iterator[str]:
    extra = ""
    if isinstance(kind, inspect.Metadata):
        extra = (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        if value is None and len(members) < len(kind.types):
            return
        if len(members) == 1:
            yield from _check(value, members[0], path)
        elif all(list(_check(value, member, path)) for member in members):  # alternatives have one description
            yield f"{path}: got {shown(value)}; must be {extra}"
    elif isinstance(kind, inspect.AnyType):
        yield from _check_any(value, path)
    elif isinstance(kind, inspect.StructType):
        yield from _check_struct(value, kind, path)
    elif isinstance(kind, inspect.VarTupleType):
        yield from _check_list(value, kind, path)
    elif isinstance(kind, inspect.DictType):
        yield from _check_dict(value, kind, path)
    elif not _fits(value, kind):
        yield f"{path}: got {shown(value)}; must be {extra or _describe(kind, value)}"


def _check_struct(value: object, kind: inspect.StructType, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: got {shown(value)}; must be a mapping with {', '.join(f.encode_name for f in kind.fields)}"
        return
    known = {field.encode_name: field for field in kind.fields}
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            yield f"{_join(path, name)}: unknown field; {hint}allowed: {', '.join(known)}"
    for name, field in known.items():
        if name in value:
            yield from _check(value[name], field.type, _join(path, name))
        elif field.required:
            yield f"{_join(path, name)}: missing; must be {_describe_any(field.type)}"


def _check_list(value: object, kind: inspect.VarTupleType, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: got {shown(value)}; must be {_describe_any(kind)}"
        return
    low, high = kind.min_length or 0, kind.max_length
    if len(value) < low or (high is not None and len(value) > high):
        yield f"{path}: got {len(value)} entries; must be {_describe_any(kind)}"
    for index, item in enumerate(value):
        yield from _check(item, kind.item_type, f"{path}[{index}]")


def _check_dict(value: object, kind: inspect.DictType, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: got {shown(value)}; must be {_describe_any(kind)}"
        return
    if kind.max_length is not None and len(value) > kind.max_length:
        yield f"{path}: got {len(value)} entries; must be at most {kind.max_length}"
    for name, item in value.items():
        if not isinstance(name, str):
            yield f"{_join(path, name)}: the name {shown(name)} must be a string"
        yield from _check(item, kind.value_type, _join(path, name))


def _check_any(value: object, path: str) -> Iterator[str]:
    """Whatever JSON can say. YAML can say more: dates, numbers without end, keys that are no text."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                yield f"{_join(path, name)}: the name {shown(name)} must be a string"
            yield from _check_any(item, _join(path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check_any(item, f"{path}[{index}]")
    elif not (
        value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
    ):
        yield f"{path}: got {shown(value)}; must be a string (in quotes), a number, true, false or null"


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _fits(value: object, kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.LiteralType):
        return value in kind.values
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str) and _fits_text(value, kind)
    if isinstance(kind, inspect.IntType):
        return isinstance(value, int) and not isinstance(value, bool) and _within(value, kind)
    if isinstance(kind, inspect.FloatType):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value) and _within(value, kind)  # type: ignore[arg-type]
    raise AssertionError(f"no rule for {kind}")


def _fits_text(value: str, kind: inspect.StrType) -> bool:
    if (
        kind.pattern is not None and re.fullmatch(kind.pattern, value) is None
    ):  # search takes a final newline for an end
        return False
    return (kind.min_length or 0) <= len(value) <= (UNBOUNDED if kind.max_length is None else kind.max_length)


def _within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)


def _describe_any(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        return str((kind.extra_json_schema or {}).get("description") or _describe_any(kind.type))
    if isinstance(kind, inspect.StructType):
        return f"a mapping with {', '.join(field.encode_name for field in kind.fields)}"
    if isinstance(kind, inspect.VarTupleType):
        return f"a list of {kind.min_length or 0} to {kind.max_length}"
    if isinstance(kind, inspect.DictType):
        return "a mapping" if isinstance(kind.value_type, inspect.AnyType) else "a mapping of strings"
    return _describe(kind, UNSET)


def _describe(kind: inspect.Type, value: Any) -> str:
    """What is allowed, in words; `value` only decides how much of it needs saying."""
    if isinstance(kind, inspect.LiteralType):
        return ("one of " if len(kind.values) > 1 else "") + ", ".join(map(str, kind.values))
    if isinstance(kind, inspect.IntType):
        too_large = isinstance(value, int) and kind.le is not None and value > kind.le
        if kind.le is not None and (kind.le < UNBOUNDED or too_large):
            return f"an integer from {kind.ge} to {kind.le}"
        return f"an integer >= {kind.ge}"
    if isinstance(kind, inspect.FloatType):
        return f"a number from {kind.ge:g} to {kind.le:g}"
    return "true or false" if isinstance(kind, inspect.BoolType) else "a string"
