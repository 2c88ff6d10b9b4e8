"""The CRD and the pure reader say the same: fields, bounds, defaults, rules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from infer_operator import rules, spec, status


def _load(name: str) -> Any:
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


crd_cases = _load("crd_cases")
CASES = crd_cases.cases()


def test_every_field_bound_and_default_is_the_same() -> None:
    wanted = _schema(inspect.type_info(spec.DeploymentSpec))
    found = _comparable(crd_cases.schema()["properties"]["spec"])
    assert dict(_flat(found)) == dict(_flat(wanted))


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """So that a failure shows the fields that differ."""
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from _flat(child, f"{path}.{name}")
    else:
        yield path, node


def _schema(kind: inspect.Type) -> dict[str, Any]:
    """The type in OpenAPI's words."""
    if isinstance(kind, inspect.Metadata):
        return _schema(kind.type)
    if isinstance(kind, inspect.UnionType):
        first, *others = (_schema(one) for one in kind.types if not isinstance(one, inspect.NoneType))
        return {name: value for one in (first, *others) for name, value in one.items() if name != "type" or not others}
    if isinstance(kind, inspect.StructType):
        required = sorted(field.encode_name for field in kind.fields if field.required)
        fields = {field.encode_name: _schema(field.type) | _default(field) for field in kind.fields}
        return {"type": "object", "properties": fields} | ({"required": required} if required else {})
    if isinstance(kind, inspect.VarTupleType):
        bounds = {"minItems": kind.min_length, "maxItems": kind.max_length}
        return {"type": "array", "items": _schema(kind.item_type)} | _given(bounds)
    if isinstance(kind, inspect.DictType):
        if isinstance(kind.value_type, inspect.AnyType):
            return {"type": "object", "any": True}
        return {"type": "object", "values": _schema(kind.value_type)} | _given({"maxProperties": kind.max_length})
    if isinstance(kind, inspect.LiteralType):
        return {"type": "string", "enum": sorted(map(str, kind.values))}
    if isinstance(kind, inspect.StrType):
        bounds = {"minLength": kind.min_length, "maxLength": kind.max_length, "pattern": kind.pattern}
        return {"type": "string"} | _given(bounds)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        type_name = "integer" if isinstance(kind, inspect.IntType) else "number"
        return {"type": type_name} | _given({"minimum": kind.ge, "maximum": kind.le})
    assert isinstance(kind, inspect.BoolType), kind
    return {"type": "boolean"}


def _given(bounds: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in bounds.items() if value is not None}


def _default(field: inspect.Field) -> dict[str, Any]:
    """What is empty need not be said."""
    made = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    default = None if made is msgspec.NODEFAULT else _without_empty(_plain(made))
    return {} if default in (None, {}, ()) else {"default": default}


def _plain(value: Any) -> Any:
    if not isinstance(value, msgspec.Struct):
        return value
    return {field.encode_name: _plain(getattr(value, field.name)) for field in msgspec.structs.fields(value)}


def _without_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    cleaned = {name: _without_empty(one) for name, one in value.items()}
    return {name: one for name, one in cleaned.items() if one is not None and one not in ({}, ())}


def _comparable(node: dict[str, Any]) -> dict[str, Any]:
    """A node of the CRD without prose, rules and formats, its default as it comes out with those of its fields."""
    found: dict[str, Any] = {}
    for name in (
        "type",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "maxProperties",
        "pattern",
    ):
        if name in node:
            found[name] = node[name]
    if "enum" in node:
        found["enum"] = sorted(node["enum"])
    if "required" in node:
        found["required"] = sorted(node["required"])
    if "properties" in node:
        found["properties"] = {name: _comparable(child) for name, child in node["properties"].items()}
    if "items" in node:
        found["items"] = _comparable(node["items"])
    if "additionalProperties" in node:
        found["values"] = _comparable(node["additionalProperties"])
    if node.get("x-kubernetes-preserve-unknown-fields"):
        found["any"] = True
    default = _without_empty(_defaulted(node, node["default"])) if "default" in node else {}
    return found if default == {} else found | {"default": default}


def _defaulted(node: dict[str, Any], value: Any) -> Any:
    """As the API server does it: from the outside in."""
    if not isinstance(value, dict):
        return value
    children = node.get("properties", {})
    all = {name: child["default"] for name, child in children.items() if "default" in child} | value
    return {name: _defaulted(children[name], one) for name, one in all.items()}


def test_every_rule_has_a_case() -> None:
    known = [case.said for case in crd_cases.RULES]
    for message in crd_cases.messages():
        assert any(message.startswith(said) for said in known), message
    assert len(list(crd_cases.messages())) == len(known)


def test_every_message_says_what_must_be() -> None:
    for message in crd_cases.messages():
        assert "must" in message or "can" in message, message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_what_the_crd_accepts_or_refuses_the_reader_does_too(case: Any) -> None:
    spec.convert(crd_cases.resource(case.accepted))
    if case.told is not None:
        with pytest.raises(spec.SpecError) as caught:
            spec.convert(crd_cases.resource(case.refused))
        assert any(line.startswith(case.told) for line in caught.value.errors), caught.value.errors


def test_both_mean_the_same_whole_devices() -> None:
    (rule,) = crd_cases.schema()["properties"]["spec"]["properties"]["accelerator"]["x-kubernetes-validations"]
    assert f"matches('{rules.WHOLE_DEVICES}')" in rule["rule"]


def test_the_cases_cover_much() -> None:
    assert len(CASES) > 150
    assert len({case.what for case in CASES}) == len(CASES)


def test_what_the_status_says_fits_the_crd() -> None:
    known = crd_cases.schema()["properties"]["status"]["properties"]
    local = {"processes", "metricsUrl"}
    assert {field.encode_name for field in msgspec.structs.fields(status.Status)} - local == known.keys()
    tenants = known["tenants"]["items"]["properties"].keys()
    assert {field.encode_name for field in msgspec.structs.fields(status.TenantStatus)} - {"quota"} == tenants
    condition = known["conditions"]["items"]["properties"]
    assert {field.encode_name for field in msgspec.structs.fields(status.Condition)} == condition.keys()
    assert condition["message"]["maxLength"] >= status.MESSAGE_CHARACTERS
