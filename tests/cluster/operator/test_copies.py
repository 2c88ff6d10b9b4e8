"""Copies of tenants' Secrets in other namespaces, on a real API server: by consent alone, gone whatever happens to their source.

An operator of all namespaces would look after other tests' resources too: run these alone.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from infer_operator import keys
from infer_operator.kube import CONFIG_MAP, NAMESPACE, RESOURCE, SECRET, Object

CONSENT = "inferengine.dev/secrets-from"


class Target:
    """A namespace of somebody else."""

    def __init__(self, home: Any, name: str) -> None:
        self._home, self.name = home, name

    async def allow(self, text: str | None) -> None:
        await self._home.kube.merge(NAMESPACE, "", self.name, {"metadata": {"annotations": {CONSENT: text}}})

    async def read(self, name: str) -> Object | None:
        found: Object | None = await self._home.kube.read(SECRET, self.name, name)
        return found

    async def everything(self) -> set[str]:
        """Names of Secrets and ConfigMaps that are the operator's."""
        found = []
        for kind in (SECRET, CONFIG_MAP):
            found += (await self._home.kube.list(kind, "inferengine.dev/deployment", self.name))[0]
        return {f"{one['kind']}/{one['metadata']['name']}" for one in found}


@pytest.fixture
async def target(home: Any) -> AsyncIterator[Target]:
    name = f"client-{secrets.token_hex(4)}"
    await home.kube.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "namespace": ""}}, NAMESPACE
    )
    yield Target(home, name)
    found = await home.kube.read(NAMESPACE, "", name)
    await home.kube.delete(NAMESPACE, "", name, found["metadata"]["uid"])


@pytest.fixture
async def everywhere(home: Any, operators: Callable[..., Any], until: Any) -> Any:
    """An operator of all namespaces, not started yet."""

    async def is_alone() -> bool:
        return not (await home.kube.list(RESOURCE))[0]

    await until(is_alone, "resources of other tests are gone: this operator would look after them too")
    return operators(look_seconds=1, sweep_seconds=1, namespace="")


def tenant(name: str, *namespaces: str, **fields: Any) -> Object:
    return {"name": name, "secretNamespaces": list(namespaces), **fields}


async def is_copied(home: Any, target: Target, name: str = "acme") -> Any:
    """The copy, if it holds what the Secret does."""
    copy = await target.read(f"{home.namespace}.d.{name}")
    own = await home.read(SECRET, f"d.{name}")
    return copy if copy is not None and own is not None and copy["data"] == own["data"] else None


async def test_a_copy_is_made_by_consent_follows_and_goes(
    home: Any, target: Target, everywhere: Any, until: Any, until_leads: Any
) -> None:
    everywhere.start()
    await until_leads(everywhere)
    await home.apply("d", tenant("acme", target.name), "globex", replicas=0)
    await home.settled("d")
    told = await home.condition(
        "d", "Degraded", "True", f"tenant acme: no copy of its Secret: namespace {target.name} takes no"
    )
    assert f"annotation {CONSENT}: {home.namespace}" in told["message"]
    await target.allow("another")
    await home.quiet()
    assert await target.everything() == set()

    await target.allow(f"another, {home.namespace}")
    copy = await until(lambda: is_copied(home, target), "the copy")
    await home.condition("d", "Degraded", "False")
    assert copy["data"].keys() == {"endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey"}
    name = f"{home.namespace}.d.acme"
    assert await target.everything() == {f"Secret/{name}", f"ConfigMap/{name}"}

    annotations = {"inferengine.dev/rotate.acme": "now"}
    await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"annotations": annotations}})

    async def has_new_keys() -> bool:
        found = await is_copied(home, target)
        return bool(found and found["data"] != copy["data"])

    await until(has_new_keys, "new keys reach the copy")
    await home.apply(
        "d", tenant("acme", target.name, auth={"publicKeys": [keys.curve_pair()[0]]}), "globex", replicas=0
    )

    async def has_no_keys() -> bool:
        found = await is_copied(home, target)
        return bool(found and found["data"].keys() == {"endpoint", "serverPublicKey"})

    await until(has_no_keys, "with keys of its own there are none in the copy")
    await home.kube.merge(SECRET, target.name, name, {"data": {"endpoint": "eA=="}})
    await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"annotations": {"look": "again"}}})
    await until(lambda: is_copied(home, target), "what somebody changed is mended")
    found = await home.kube.read(CONFIG_MAP, target.name, name)
    await home.kube.delete(CONFIG_MAP, target.name, name, found["metadata"]["uid"])

    async def is_another() -> bool:
        note, made = await home.kube.read(CONFIG_MAP, target.name, name), await is_copied(home, target)
        return bool(
            note is not None
            and made
            and note["metadata"]["uid"] != found["metadata"]["uid"]
            and made["metadata"]["ownerReferences"][0]["uid"] == note["metadata"]["uid"]
        )

    await until(is_another, "the note and the copy come back")

    await target.allow(None)
    await until(lambda: is_empty(target), "without consent there is nothing")
    await home.condition("d", "Degraded", "True", "takes no Secrets")
    await target.allow(home.namespace)
    await until(lambda: is_copied(home, target), "with it again, the copy again")
    await home.kube.merge(RESOURCE, home.namespace, "d", {"spec": {"tenants": [{"name": "globex"}]}})
    await until(lambda: is_empty(target), "it goes with its tenant")
    assert everywhere.stop() == 0
    assert "Traceback" not in everywhere.log()


async def is_empty(target: Target) -> bool:
    return not await target.everything()


async def test_what_is_not_ours_is_never_touched(
    home: Any, target: Target, everywhere: Any, until: Any, until_leads: Any
) -> None:
    """A Secret and a ConfigMap of the copies' names; the other tenant gets its copy."""
    await target.allow(home.namespace)
    made = {}
    for kind, name in ((SECRET, "acme"), (CONFIG_MAP, "globex")):
        meta = {"name": f"{home.namespace}.d.{name}", "namespace": target.name}
        manifest = {"apiVersion": "v1", "kind": kind.name, "metadata": meta, "data": {}}
        made[kind] = await home.kube.create(manifest, kind)
    everywhere.start()
    await until_leads(everywhere)
    await home.apply("d", *(tenant(name, target.name) for name in ("acme", "globex", "third")), replicas=0)
    await until(lambda: is_copied(home, target, "third"), "the third tenant's copy")
    told = await home.condition(
        "d", "Degraded", "True", f"Secret {target.name}/{home.namespace}.d.acme is not this resource's"
    )
    assert f"ConfigMap {target.name}/{home.namespace}.d.globex is not this resource's" in told["message"]
    await home.delete(RESOURCE, "d")
    await home.gone("d")

    async def is_clean() -> bool:
        return not await target.everything()

    await until(is_clean, "what was ours is gone")
    for kind, before in made.items():
        assert await home.kube.read(kind, target.name, before["metadata"]["name"]) == before


async def test_no_copy_outlives_its_resource(
    home: Any, target: Target, everywhere: Any, until: Any, until_leads: Any
) -> None:
    """Deleted as it should be; its finalizer stripped while nobody looks; replaced by a namesake meanwhile."""
    await target.allow(home.namespace)
    everywhere.start()
    await until_leads(everywhere)
    await home.apply("d", tenant("acme", target.name), replicas=0)
    await until(lambda: is_copied(home, target), "the copy")
    await home.delete(RESOURCE, "d")
    await home.gone("d")
    await until(lambda: is_empty(target), "deleted with the resource")

    await home.apply("d", tenant("acme", target.name), replicas=0)
    await until(lambda: is_copied(home, target), "the copy again")
    everywhere.stop()
    await home.delete(RESOURCE, "d")
    await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"finalizers": []}})
    await home.gone("d")
    assert not await is_empty(target)
    everywhere.start()
    await until(lambda: is_empty(target), "the next operator cleans up")

    await home.apply("d", tenant("acme", target.name), replicas=0)
    before = await until(lambda: is_copied(home, target), "one more")
    everywhere.stop()
    await home.delete(RESOURCE, "d")
    await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"finalizers": []}})
    await home.gone("d")
    await home.apply("d", tenant("acme", target.name), replicas=0)
    everywhere.start()

    async def is_the_namesake_s() -> bool:
        found = await is_copied(home, target)
        return bool(found and found["data"]["clientSecretKey"] != before["data"]["clientSecretKey"])

    await until(is_the_namesake_s, "the namesake's copy is its own")


async def test_an_operator_of_one_namespace_makes_none_and_says_so(home: Any, target: Target, operator: Any) -> None:
    await target.allow(home.namespace)
    await home.apply("d", tenant("acme", target.name), tenant("globex", home.namespace), replicas=0)
    told = await home.condition("d", "Degraded", "True", f"this operator looks after namespace {home.namespace} alone")
    assert f"tenant globex: no copy of its Secret: {home.namespace} has the Secret itself" in told["message"]
    await home.settled("d")
    assert await target.everything() == set()
