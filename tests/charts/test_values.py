"""Every value of every chart has a sentence and a type; a wrong one is refused with its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHARTS = Path(__file__).parents[2] / "charts"


def documented(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of the chart's own: those with `additionalProperties: false` around them."""
    for name, value in schema["properties"].items():
        yield f"{path}{name}", value["description"]
        if value.get("additionalProperties") is False:
            yield from documented(value, f"{path}{name}.")


def paths(values: dict[str, Any], known: set[str], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{path}{name}"
        if isinstance(value, dict) and any(other.startswith(f"{path}{name}.") for other in known):
            yield from paths(value, known, f"{path}{name}.")


def comments(text: str) -> dict[str, str]:
    """The comment above each key of values.yaml."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip().startswith("#"):
            comment.append(line.strip(" #"))
            continue
        if key := re.match(r" *(\w+):", line):
            above = [*(entry for entry in above if entry[0] < indent), (indent, key[1])]
            if comment:
                found[".".join(name for _, name in above)] = " ".join(comment)
        comment = []
    return found


@pytest.mark.parametrize("chart", ["inferengine", "valkey"])
def test_every_value_is_documented_and_every_documented_value_is_there(chart: str) -> None:
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
    text = (CHARTS / chart / "values.yaml").read_text()
    sentences = dict(documented(schema))
    assert sentences.pop("global")
    assert list(paths(yaml.safe_load(text), set(sentences))) == list(sentences)
    assert comments(text) == sentences
    assert all(sentence.endswith(".") and len(sentence) > 10 for sentence in sentences.values())


def test_the_defaults_pass_a_strict_lint(lint: Callable[..., list[str]]) -> None:
    assert lint({}) == []
    assert lint({"watchNamespace": "team-a", "crds": {"enabled": False}}) == []
    assert lint({}, chart="valkey") == []
    assert lint({"users": [{"name": "a", "namespace": "team"}]}, chart="valkey") == []


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({"replicas": "two"}, "/replicas", "got string, want integer"),
        ({"replicas": 11}, "/replicas", "maximum: got 11, want 10"),
        ({"replica": 2}, "", "additional properties 'replica' not allowed"),
        ({"image": {"name": "x"}}, "/image", "additional properties 'name' not allowed"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"),
        ({"engineImage": {"repository": ""}}, "/engineImage/repository", "minLength: got 0, want 1"),
        ({"watchNamespace": "Team A"}, "/watchNamespace", "does not match pattern"),
        ({"crds": {"keep": "yes"}}, "/crds/keep", "got string, want boolean"),
        ({"image": {"digest": "1234"}}, "/image/digest", "does not match pattern"),
        ({"podMonitor": {"interval": "often"}}, "/podMonitor/interval", "does not match pattern"),
        ({"metricsPort": 0}, "/metricsPort", "minimum: got 0, want 1"),
        ({"extraEnv": [{"value": "1"}]}, "/extraEnv/0", "missing property 'name'"),
        ({"extraVolumeMounts": [{"name": "a"}]}, "/extraVolumeMounts/0", "missing property 'mountPath'"),
        ({"nodeSelector": {"gpu": True}}, "/nodeSelector/gpu", "got boolean, want string"),
        ({"test": {"spec": {"tenants": []}}}, "/test/spec/tenants", "minItems: got 0, want 1"),
        ({"test": {"timeoutSeconds": 1}}, "/test/timeoutSeconds", "minimum: got 1, want 30"),
        ({"imagePullSecrets": ["regcred"]}, "/imagePullSecrets/0", "got string, want object"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    refusal: Callable[..., str], values: dict[str, Any], where: str, what: str
) -> None:
    said = refusal(values)
    assert f"at '{where}'" in said
    assert what in said
