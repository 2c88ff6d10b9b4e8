"""A resource and a tenant in, the copy of its Secret for another namespace and the note beside it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infer_operator.builders import copies

Make = Callable[..., Any]


def held(note: Any) -> Any:
    """As an API server has it."""
    return note | {"metadata": note["metadata"] | {"uid": "n-1", "resourceVersion": "7"}}


def test_a_copy_belongs_to_its_note_and_both_say_whose_they_are(make: Make) -> None:
    made = make()
    note = held(copies.note(made.resource, "acme", "shop"))
    data = {"endpoint": "ZQ==", "serverPublicKey": "cw==", "other": "bw=="}
    copy = copies.copy(made.resource, "acme", note, data)
    for one in (note, copy):
        meta = one["metadata"]
        assert (meta["namespace"], meta["name"]) == ("shop", "team.demo.acme")
        assert meta["labels"]["inferengine.dev/source-namespace"] == "team"
        assert meta["labels"]["inferengine.dev/deployment"] == "demo"
        assert copies.is_from(one, made.resource.uid)
        assert not copies.is_from(one, "another")
    assert "ownerReferences" not in note["metadata"]  # nothing may own across namespaces
    assert [owner["uid"] for owner in copy["metadata"]["ownerReferences"]] == ["n-1"]
    assert copy["data"] == {"endpoint": "ZQ==", "serverPublicKey": "cw=="}


def test_copies_of_two_sources_never_have_one_name(make: Make) -> None:
    names = {copies.copy_name(make(name=name).resource, tenant) for name, tenant in (("a-b", "c"), ("a", "b-c"))}
    assert names == {"team.a-b.c", "team.a.b-c"}
    assert len(copies.copy_name(make(name="d" * 25).resource, "t" * 25)) + 63 < 253


@pytest.mark.parametrize(
    ("annotation", "allowed"),
    [("team", True), ("a, team ,b", True), ("teams", False), ("", False), ("*", False), (None, False)],
)
def test_consent_names_the_source(annotation: str | None, allowed: bool) -> None:
    annotations = {} if annotation is None else {"annotations": {"inferengine.dev/secrets-from": annotation}}
    assert copies.allows({"metadata": {"name": "shop", **annotations}}, "team") is allowed
