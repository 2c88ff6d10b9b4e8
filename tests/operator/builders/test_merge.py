"""A user's podTemplate over ours: each rule of a strategic merge, once."""

from __future__ import annotations

import copy

from infer_operator.builders.merge import merge

OURS = {
    "a": {"b": 1, "c": 2},
    "containers": [
        {"name": "server", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
    ],
    "volumes": [{"name": "v", "emptyDir": {}}],
    "args": ["x", "y"],
}


def test_maps_are_merged_by_key() -> None:
    assert merge(OURS, {"a": {"c": 3, "d": 4}})["a"] == {"b": 1, "c": 3, "d": 4}


def test_null_removes() -> None:
    merged = merge(OURS, {"a": {"b": None}, "args": None, "never": None})
    assert merged["a"] == {"c": 2}
    assert merged.keys() == OURS.keys() - {"args"}


def test_containers_are_merged_by_name_and_others_come_after() -> None:
    merged = merge(OURS, {"containers": [{"name": "side", "image": "s"}, {"name": "server", "tty": True}]})
    server, side = merged["containers"]
    assert (server["name"], server["image"], server["tty"]) == ("server", "i", True)
    assert side == {"name": "side", "image": "s"}


def test_variables_and_volumes_are_replaced_whole() -> None:
    """What they are is told by their keys: a value and a reference to one would contradict each other."""
    reference = {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    merged = merge(
        OURS,
        {
            "containers": [{"name": "server", "env": [reference]}],
            "volumes": [{"name": "v", "hostPath": {"path": "/x"}}, {"name": "w", "emptyDir": {}}],
        },
    )
    assert merged["containers"][0]["env"] == [reference, {"name": "B", "value": "2"}]
    assert merged["volumes"] == [{"name": "v", "hostPath": {"path": "/x"}}, {"name": "w", "emptyDir": {}}]


def test_other_lists_are_replaced() -> None:
    assert merge(OURS, {"args": ["z"]})["args"] == ["z"]


def test_what_fits_nowhere_is_left_for_the_api_server_to_refuse() -> None:
    merged = merge(OURS, {"a": "text", "containers": ["text", {"image": "without a name"}]})
    assert merged["a"] == "text"
    assert merged["containers"][1:] == ["text", {"image": "without a name"}]


def test_neither_side_is_changed() -> None:
    before, theirs = copy.deepcopy(OURS), {"a": {"b": None}, "containers": [{"name": "server", "env": [{"name": "A"}]}]}
    kept = copy.deepcopy(theirs)
    merge(OURS, theirs)
    assert (before, kept) == (OURS, theirs)
