"""What counts as a difference between what is there and what is wanted."""

from __future__ import annotations

from typing import Any

import pytest

from infer_operator.backends.drift import APPLIED_ANNOTATION, differences, sealed


@pytest.mark.parametrize(
    ("observed", "wanted", "paths"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [".a"]),
        ({}, {"a": {"b": 1}}, [".a"]),
        ({"a": None}, {"a": {"b": 1}}, [".a"]),
        ({}, {"a": None}, []),
        ({"a": 1}, {"a": True}, [".a"]),
        ({"a": "1"}, {"a": 1}, [".a"]),
        ({"a": [1, 2]}, {"a": [1]}, [".a"]),
        ({"a": [1, 3]}, {"a": [1, 2]}, [".a[1]"]),
        ({"a": 5}, {"a": [1]}, [".a"]),
        ({"a": []}, {"a": []}, []),
        ({"a": [{"name": "ours", "x": 1}, {"name": "injected"}]}, {"a": [{"name": "ours"}]}, []),
        ({"a": [{"name": "injected"}, {"name": "ours", "x": 2}]}, {"a": [{"name": "ours", "x": 1}]}, [".a[ours].x"]),
        ({"a": [{"name": "injected"}]}, {"a": [{"name": "ours"}]}, [".a[ours]"]),
        ({"a": [{"effect": "x"}, {"effect": "y"}]}, {"a": [{"effect": "x"}]}, [".a"]),
    ],
)
def test_differences(observed: Any, wanted: Any, paths: list[str]) -> None:
    assert list(differences(observed, wanted)) == paths


def test_a_field_that_is_no_longer_wanted_changes_the_seal() -> None:
    before = sealed({"metadata": {"name": "a"}, "spec": {"x": 1, "y": 2}})
    after = sealed({"metadata": {"name": "a"}, "spec": {"x": 1}})
    assert list(differences(before, after)) == [f".metadata.annotations.{APPLIED_ANNOTATION}"]
    assert list(differences(before, sealed({"spec": {"y": 2, "x": 1}, "metadata": {"name": "a"}}))) == []


def test_sealing_leaves_the_manifest_and_its_annotations_alone() -> None:
    manifest = {"metadata": {"name": "a", "annotations": {"mine": "1"}}}
    assert sealed(manifest)["metadata"]["annotations"].keys() == {"mine", APPLIED_ANNOTATION}
    assert manifest == {"metadata": {"name": "a", "annotations": {"mine": "1"}}}
