"""What the API server holds, as far as we know: objects from lists, watches and our own writes in, the newest of each out.

It is a cache and may be late. Three rules keep what is late from doing harm:

S1. Of two versions of an object the newer stays, whichever came last (resourceVersions are ordered since Kubernetes 1.35).
S2. An object that isn't here comes in only if it is newer than its deletion, and than all that a watch of its kind has told in
    order: what we missed then was its deletion.
S3. Every watch ends after about ten minutes and a list follows. What is here and not in the list is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator

from infer_operator.builders.copies import SOURCE_LABEL
from infer_operator.builders.manifest import DEPLOYMENT_LABEL
from infer_operator.kube import CONFIG_MAP, POD, RESOURCE, ApiError, Kind, Kube, KubeError, Object
from infer_operator.state import Key
from infer_operator.workqueue import Lane

log = logging.getLogger(__name__)

LIST_AGAIN_SECONDS = 1.0

Slot = tuple[str, str]
"""kind and name"""
Wake = Callable[[Key, Lane], None]


class Store:
    """Objects of all resources by key: the resource itself, and its children. `wake` is told of every key with news."""

    def __init__(self, wake: Wake, clock: Callable[[], float] = time.monotonic) -> None:
        self._wake = wake
        self._clock = clock
        self._objects: dict[Key, dict[Slot, Object]] = {}
        self._told: dict[str, int] = {}
        """by kind: up to which resourceVersion lists and watches have told everything"""
        self._deleted: dict[tuple[Key, Slot], int] = {}
        """objects that went -> the version of their deletion, until a list says it all"""
        self._heard_at: dict[str, float] = {}

    # --- reading -----------------------------------------------------------------------------------------------------
    def resource(self, key: Key) -> Object | None:
        return self._objects.get(key, {}).get((RESOURCE.name, key.name))

    def children(self, key: Key) -> dict[Slot, Object]:
        """Pods among them; a copy, so that it stays the same while one run looks at it."""
        found = self._objects.get(key, {}).items()
        return {slot: child for slot, child in found if slot[0] != RESOURCE.name}

    def resources(self) -> Iterator[Object]:
        for key in list(self._objects):
            if (found := self.resource(key)) is not None:
                yield found

    def ages(self) -> dict[str, float]:
        """By kind: seconds since the API server last said anything about it."""
        now = self._clock()
        return {kind: now - at for kind, at in self._heard_at.items()}

    def readiness(self) -> dict[str, float]:
        """How many resources are ready ("True"), are not ("False"), or have no such condition yet ("Unknown")."""
        number = {"True": 0.0, "False": 0.0, "Unknown": 0.0}
        for resource in self.resources():
            told = resource.get("status", {}).get("conditions", ())
            number[next((one["status"] for one in told if one["type"] == "Ready"), "Unknown")] += 1
        return number

    # --- writing -----------------------------------------------------------------------------------------------------
    def put(self, kind: Kind, seen: Object) -> bool:
        """An object as an event or the answer to our own write gives it. Whether it was news."""
        key, slot = place(kind, seen)
        known = self._objects.get(key, {}).get(slot)
        version = _version(seen)
        if known is None:
            if version <= max(self._told.get(kind.name, 0), self._deleted.get((key, slot), 0)):
                return False  # keeps S2
        elif version <= _version(known):
            return False  # keeps S1
        self._objects.setdefault(key, {})[slot] = _trimmed(kind, seen)
        return True

    def drop(self, kind: Kind, seen: Object) -> bool:
        """A deletion. Whether the object was here, in no newer version."""
        key, slot = place(kind, seen)
        known = self._objects.get(key, {}).get(slot)
        self._deleted[key, slot] = max(self._deleted.get((key, slot), 0), _version(seen))
        if known is None or _version(known) > _version(seen):
            return False
        del self._objects[key][slot]
        if not self._objects[key]:
            del self._objects[key]
        return True

    def event(self, kind: Kind, type: str, seen: Object, *, in_order: bool = True) -> None:
        """What a watch told; `in_order`: after everything older of its kind, which kopf's handlers are not."""
        self._heard_at[kind.name] = self._clock()
        news = False
        if type == "DELETED":
            news = self.drop(kind, seen)
        elif type != "BOOKMARK":
            news = self.put(kind, seen)
        if in_order:
            self._told[kind.name] = max(self._told.get(kind.name, 0), _version(seen))
        if news:
            self._wake(place(kind, seen)[0], Lane.URGENT)

    def listed(self, kind: Kind, items: list[Object], version: str) -> None:
        """Everything that there is of one kind: keeps S3. News is urgent, the rest of a list of resources is a resync."""
        self._heard_at[kind.name] = self._clock()
        there = {place(kind, item) for item in items}
        gone = [
            (key, slot, known)
            for key, slots in self._objects.items()
            for slot, known in slots.items()
            if slot[0] == kind.name and (key, slot) not in there and _version(known) <= int(version)
        ]
        for key, _, known in gone:
            self.drop(kind, known)
            self._wake(key, Lane.URGENT)
        for item in items:
            if self._put_listed(kind, item):
                self._wake(place(kind, item)[0], Lane.URGENT)
            elif kind is RESOURCE:
                self._wake(place(kind, item)[0], Lane.RESYNC)
        self._told[kind.name] = max(self._told.get(kind.name, 0), int(version))
        for place_, deleted in list(self._deleted.items()):
            if place_[1][0] == kind.name and deleted <= int(version):
                del self._deleted[place_]

    def forget(self, kind: Kind) -> None:
        """The server knows this kind no longer, and nothing of it."""
        for key, slots in list(self._objects.items()):
            for slot in [slot for slot in slots if slot[0] == kind.name]:
                del slots[slot]
            if not slots:
                del self._objects[key]
        for place_ in [place_ for place_ in self._deleted if place_[1][0] == kind.name]:
            del self._deleted[place_]
        self._told.pop(kind.name, None)
        self._heard_at.pop(kind.name, None)

    def _put_listed(self, kind: Kind, item: Object) -> bool:
        """As `put`, but S2 does not apply: what a list contains is there."""
        key, slot = place(kind, item)
        known = self._objects.get(key, {}).get(slot)
        if known is not None and _version(item) <= _version(known):
            return False
        self._objects.setdefault(key, {})[slot] = _trimmed(kind, item)
        return True


async def follow(kube: Kube, store: Store, kind: Kind, listed: asyncio.Event, namespace: str = "") -> None:
    """List and watch one kind of children for ever; `listed` is set after the first list."""
    while True:
        await _follow_once(kube, store, kind, listed.set, namespace, unknown=())


async def follow_where_known(
    kube: Kube, store: Store, kind: Kind, tell: Callable[[bool], None], namespace: str, look_again_seconds: float
) -> None:
    """As `follow`, for a kind that the server may not know yet, or no longer: `tell` is told which, after each look."""
    while True:
        if not await _follow_once(kube, store, kind, lambda: tell(True), namespace, unknown=(403, 404)):
            store.forget(kind)
            tell(False)
            await asyncio.sleep(look_again_seconds)


async def _follow_once(
    kube: Kube, store: Store, kind: Kind, listed: Callable[[], None], namespace: str, *, unknown: Collection[int]
) -> bool:
    """One list, and the watch that follows it; False if the answer is one of `unknown`."""
    try:
        items, version = await kube.list(kind, DEPLOYMENT_LABEL, namespace)
        store.listed(kind, items, version)
        listed()
        async for type, seen in kube.watch(kind, version, DEPLOYMENT_LABEL, namespace):
            store.event(kind, type, seen)
    except KubeError as error:  # 410 Gone among them: what we wanted to go on from is forgotten
        if isinstance(error, ApiError) and error.status in unknown:
            return False
        log.warning("watch of %s: %s: list again", kind.plural, error)
        await asyncio.sleep(LIST_AGAIN_SECONDS)
    return True


def place(kind: Kind, seen: Object) -> tuple[Key, Slot]:
    """Whose it is, by its label, and which of theirs: the note of a copy elsewhere with its namespace before its name."""
    meta = seen["metadata"]
    labels = meta.get("labels", {})
    owner = meta["name"] if kind is RESOURCE else labels.get(DEPLOYMENT_LABEL, "")
    if kind is CONFIG_MAP and SOURCE_LABEL in labels:
        return Key(labels[SOURCE_LABEL], owner), (kind.name, f"{meta['namespace']}/{meta['name']}")
    return Key(meta.get("namespace", ""), owner), (kind.name, meta["name"])


def _version(seen: Object) -> int:
    return int(seen["metadata"]["resourceVersion"])


def _trimmed(kind: Kind, seen: Object) -> Object:
    """Of a pod only what decides about slots and health: its spec alone is larger than all else we hold of a deployment."""
    if kind is not POD:
        return seen
    status = seen.get("status", {})
    kept = {
        name: status[name]
        for name in ("phase", "conditions", "containerStatuses", "initContainerStatuses", "reason")
        if name in status
    }
    names = ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences")
    times = ("creationTimestamp", "deletionTimestamp")
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {name: seen["metadata"][name] for name in (*names, *times) if name in seen["metadata"]},
        "status": kept,
    }
