"""What the operator knows of the API server: late and lost events do no harm."""

from __future__ import annotations

import random

import pytest

from infer_operator.builders.copies import SOURCE_LABEL
from infer_operator.builders.manifest import DEPLOYMENT_LABEL
from infer_operator.kube import CONFIG_MAP, DEPLOYMENT, POD, RESOURCE, Kind, Object
from infer_operator.state import Key
from infer_operator.store import Store
from infer_operator.workqueue import Lane

KEY = Key("ns", "d")


def child(name: str, version: int, uid: str = "u", kind: Kind = DEPLOYMENT) -> Object:
    meta = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version)}
    return {"kind": kind.name, "metadata": meta | {"labels": {DEPLOYMENT_LABEL: "d"}}}


@pytest.fixture
def woken() -> list[tuple[Key, Lane]]:
    return []


@pytest.fixture
def store(woken: list[tuple[Key, Lane]]) -> Store:
    return Store(lambda key, lane: woken.append((key, lane)))


def names(store: Store) -> set[str]:
    return {name for _, name in store.children(KEY)}


def test_events_wake_their_key(store: Store, woken: list[tuple[Key, Lane]]) -> None:
    store.event(DEPLOYMENT, "ADDED", child("a", 1))
    store.event(DEPLOYMENT, "DELETED", child("a", 2))
    store.event(DEPLOYMENT, "BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    assert woken == [(KEY, Lane.URGENT)] * 2
    assert names(store) == set()


def test_the_note_of_a_copy_is_its_source_s(store: Store, woken: list[tuple[Key, Lane]]) -> None:
    """Of two target namespaces there are two; a pod can't say that it is another namespace's."""
    labels = {DEPLOYMENT_LABEL: "d", SOURCE_LABEL: "ns"}
    for version, (kind, namespace) in enumerate(((CONFIG_MAP, "shop"), (CONFIG_MAP, "other"), (POD, "shop")), 5):
        meta = {"name": "ns.d.acme", "namespace": namespace, "uid": "u", "resourceVersion": str(version)}
        store.event(kind, "ADDED", {"metadata": meta | {"labels": labels}})
    assert names(store) == {"shop/ns.d.acme", "other/ns.d.acme"}
    assert woken == [(KEY, Lane.URGENT), (KEY, Lane.URGENT), (Key("shop", "d"), Lane.URGENT)]


def test_a_kind_that_the_server_knows_no_longer_leaves_nothing(store: Store) -> None:
    store.event(CONFIG_MAP, "ADDED", child("note", 5, kind=CONFIG_MAP))
    store.event(DEPLOYMENT, "ADDED", child("a", 5))
    store.forget(CONFIG_MAP)
    assert names(store) == {"a"}
    assert set(store.ages()) == {DEPLOYMENT.name}
    assert store.put(CONFIG_MAP, child("note", 5, kind=CONFIG_MAP))  # it may come back, as new as it was


def test_our_own_write_that_comes_back_is_no_news(store: Store, woken: list[tuple[Key, Lane]]) -> None:
    assert store.put(DEPLOYMENT, child("a", 5))
    store.event(DEPLOYMENT, "ADDED", child("a", 5))
    store.event(DEPLOYMENT, "MODIFIED", child("a", 4))
    assert woken == []


def test_an_answer_that_its_deletion_overtook_stays_out(store: Store) -> None:
    store.event(DEPLOYMENT, "ADDED", child("a", 5))
    store.event(DEPLOYMENT, "DELETED", child("a", 7))
    assert not store.put(DEPLOYMENT, child("a", 6))
    assert names(store) == set()


def test_events_out_of_order_bring_in_every_object(store: Store) -> None:
    """kopf hands each object's events to a task of its own."""
    store.listed(RESOURCE, [], "1")
    for name, version in (("b", 9), ("a", 5)):
        store.event(RESOURCE, "ADDED", child(name, version, kind=RESOURCE), in_order=False)
    assert {resource["metadata"]["name"] for resource in store.resources()} == {"a", "b"}
    store.event(RESOURCE, "DELETED", child("a", 12, kind=RESOURCE), in_order=False)
    assert not store.put(RESOURCE, child("a", 11, kind=RESOURCE))
    store.listed(RESOURCE, [child("b", 9, kind=RESOURCE)], "20")
    assert not store.put(RESOURCE, child("a", 11, kind=RESOURCE))
    assert store.put(RESOURCE, child("a", 21, kind=RESOURCE))


def test_a_late_deletion_of_a_namesake_harms_nobody(store: Store) -> None:
    store.put(DEPLOYMENT, child("a", 9, uid="new"))
    store.event(DEPLOYMENT, "DELETED", child("a", 7, uid="old"))
    assert names(store) == {"a"}


def test_a_list_finds_what_no_event_told(store: Store, woken: list[tuple[Key, Lane]]) -> None:
    store.listed(DEPLOYMENT, [child("a", 1), child("b", 2)], "3")
    woken.clear()
    store.put(DEPLOYMENT, child("ours", 30))  # written after the list was made
    store.listed(DEPLOYMENT, [child("b", 2), child("c", 11)], "20")
    assert names(store) == {"b", "c", "ours"}
    assert woken == [(KEY, Lane.URGENT)] * 2
    assert store.children(KEY)[("Deployment", "b")]["metadata"]["resourceVersion"] == "2"


def test_a_list_of_resources_is_a_resync(store: Store, woken: list[tuple[Key, Lane]]) -> None:
    resource = child("d", 1, kind=RESOURCE)
    store.listed(RESOURCE, [resource], "2")
    store.listed(RESOURCE, [resource], "3")
    assert woken == [(KEY, Lane.URGENT), (KEY, Lane.RESYNC)]
    assert store.resource(KEY) is resource
    assert list(store.resources()) == [resource]


def test_resources_are_counted_by_what_they_say_of_themselves(store: Store) -> None:
    for number, status in enumerate(("True", "True", "False", "Unknown", None)):
        meta = {"name": f"d{number}", "namespace": "ns", "uid": "u", "resourceVersion": str(number + 1)}
        told = [] if status is None else [{"type": "Accepted", "status": "True"}, {"type": "Ready", "status": status}]
        store.event(RESOURCE, "ADDED", {"metadata": meta, "status": {"conditions": told}})
    assert store.readiness() == {"True": 2, "False": 1, "Unknown": 2}


def test_kinds_do_not_mix(store: Store) -> None:
    store.listed(DEPLOYMENT, [child("a", 1)], "100")
    assert store.put(POD, child("a", 2, kind=POD))
    store.listed(POD, [], "100")
    assert set(store.children(KEY)) == {("Deployment", "a")}


def test_of_a_pod_little_is_kept(store: Store) -> None:
    pod = child("p", 1, kind=POD) | {"spec": {"large": True}, "status": {"phase": "Running", "hostIP": "x"}}
    pod["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {"large": "too"}}
    store.event(POD, "ADDED", pod)
    kept = store.children(KEY)[("Pod", "p")]
    assert "spec" not in kept
    assert "annotations" not in kept["metadata"]
    assert kept["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"  # which pods are of the newest template
    assert kept["status"] == {"phase": "Running"}


def test_any_order_of_answers_and_events_ends_with_the_truth() -> None:
    """A server's history of one name, told by its watch in order, our writes' answers thrown in late."""
    rng = random.Random(7)
    for _ in range(500):
        store = Store(lambda key, lane: None)
        history: list[tuple[str, Object]] = []
        there = False
        for version in range(1, rng.randint(2, 12)):
            type = rng.choice(["MODIFIED", "DELETED"]) if there else "ADDED"
            there = type != "DELETED"
            history.append((type, child("a", version, uid=str(version))))
        answers = [seen for type, seen in history if type != "DELETED" and rng.random() < 0.7]
        pending = list(history)
        while pending or answers:
            if pending and (not answers or rng.random() < 0.5):
                store.event(DEPLOYMENT, *pending.pop(0))
            else:
                store.put(DEPLOYMENT, answers.pop(rng.randrange(len(answers))))
        last_type, last = history[-1]
        expected = {} if last_type == "DELETED" else {("Deployment", "a"): last}
        assert store.children(KEY) == expected
