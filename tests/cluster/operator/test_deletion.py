"""A resource goes, however: nothing of it is left in Kubernetes or in the store, and a namesake is another one."""

from __future__ import annotations

from typing import Any

from redis import Redis

from infer_operator.finalizer import FINALIZER
from infer_operator.kube import RESOURCE, SECRET
from infer_server.contract.keys import tenant_key


async def delete(home: Any, name: str) -> None:
    await home.delete(RESOURCE, name)


async def has_no_objects(home: Any) -> bool:
    """Of any resource. The control plane has no node, so pods go at once."""
    return not await home.objects()


def use_quota(home: Any, name: str, tenant: str) -> None:
    """What a gateway writes while a tenant is served."""
    with Redis.from_url(home.url) as redis:
        for part in ("state", "requests", "audit"):
            redis.hset(tenant_key(f"{home.namespace}/{name}/{tenant}", part), "used", "5")


def used(home: Any, name: str, tenant: str) -> Any:
    with Redis.from_url(home.url) as redis:
        return redis.hget(tenant_key(f"{home.namespace}/{name}/{tenant}", "state"), "used")


async def strip_finalizer(home: Any, name: str) -> None:
    await home.kube.merge(RESOURCE, home.namespace, name, {"metadata": {"finalizers": []}})


async def test_nothing_is_left(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", "globex", replicas=2)
    await home.apply("other", "acme")
    resource = await home.settled("d")
    await home.settled("other")
    assert FINALIZER in resource["metadata"]["finalizers"]
    use_quota(home, "d", "acme")
    use_quota(home, "other", "acme")
    await delete(home, "d")
    await home.gone("d")
    assert home.store_keys("d") == set()

    async def only_the_other() -> bool:
        found = await home.objects()
        return all(
            child["metadata"]["labels"]["inferengine.dev/deployment"] == "other"
            for child in found.values()
            if child["kind"] != RESOURCE.name
        )

    await until(only_the_other, "its objects are gone")
    assert used(home, "other", "acme") == b"5"
    assert home.document("other") is not None


async def test_deleted_while_the_operator_is_down(home: Any, operators: Any, until: Any, until_leads: Any) -> None:
    operator = operators()
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme")
    await home.settled("d")
    use_quota(home, "d", "acme")
    operator.kill()
    await delete(home, "d")
    assert (await home.get(RESOURCE, "d"))["metadata"]["finalizers"] == [FINALIZER]
    operator.start()
    await home.gone("d")
    assert home.store_keys() == set()
    await until(lambda: has_no_objects(home), "no orphans")


async def test_finalizer_stripped_while_the_operator_runs(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme")
    await home.settled("d")
    use_quota(home, "d", "acme")
    await delete(home, "d")
    await strip_and_wait(home, until)


async def strip_and_wait(home: Any, until: Any) -> None:
    if await home.read(RESOURCE, "d") is not None:
        await strip_finalizer(home, "d")
    await home.gone("d")

    async def is_clean() -> bool:
        return not home.store_keys("d")

    await until(is_clean, "nothing is left in the store")
    await until(lambda: has_no_objects_of_d(home), "no orphans")


async def has_no_objects_of_d(home: Any) -> bool:
    found = (await home.objects()).values()
    return not [
        child for child in found if child["metadata"].get("labels", {}).get("inferengine.dev/deployment") == "d"
    ]


async def test_finalizer_stripped_while_the_operator_is_down(
    home: Any, operators: Any, until: Any, until_leads: Any
) -> None:
    """Another resource uses the store, so the sweep comes by. A tenant that left that one goes with the same sweep."""
    operator = operators(sweep_seconds=1)
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme")
    await home.apply("other", "acme", "globex")
    await home.settled("d")
    await home.settled("other")
    operator.kill()
    for name, tenant in (("d", "acme"), ("other", "acme"), ("other", "globex"), ("foreign", "x")):
        use_quota(home, name, tenant)
    await delete(home, "d")
    await strip_finalizer(home, "d")
    await home.apply("other", "acme")
    operator.start()
    await strip_and_wait(home, until)

    async def has_forgotten_globex() -> bool:
        return used(home, "other", "globex") is None

    await until(has_forgotten_globex, "the tenant that left is swept")
    assert used(home, "other", "acme") == b"5"
    assert used(home, "foreign", "x") == b"5"  # no resource of ours ever had this name: another operator's, perhaps


async def test_a_namesake_is_another_resource(home: Any, operators: Any, until: Any, until_leads: Any) -> None:
    """Deleted behind the operator's back and made again: own uid, keys and ports; no quota inherited."""
    operator = operators()
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme")
    first = await home.settled("d")
    before, keys = home.entries("d")["acme"], await home.secret("d.acme")
    use_quota(home, "d", "acme")
    operator.kill()
    await delete(home, "d")
    await strip_finalizer(home, "d")
    await home.gone("d")
    await home.apply("d", "acme")  # while the old objects may still be there
    operator.start()
    second = await home.settled("d")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]

    async def all_new() -> bool:
        found = await home.read(SECRET, "d.acme")
        if found is None or found["metadata"]["ownerReferences"][0]["uid"] != second["metadata"]["uid"]:
            return False
        return bool((await home.secret("d.acme"))["clientPublicKey"] == home.entries("d")["acme"].public_keys[0])

    await until(all_new, "its own keys")
    after = home.entries("d")["acme"]
    assert after.uid != before.uid
    assert (await home.secret("d.acme"))["clientSecretKey"] != keys["clientSecretKey"]
    assert home.document("d").version.uid == second["metadata"]["uid"]
    assert used(home, "d", "acme") is None


async def test_a_store_that_is_away_holds_the_deletion_up(home: Any, operator: Any, until: Any) -> None:
    """And nothing else: the resource next to it goes on."""
    unreachable = {"urlSecretRef": {"name": "unreachable", "key": "url"}}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "unreachable", "namespace": home.namespace},
        "stringData": {"url": "redis://127.0.0.1:1"},
    }
    await home.kube.create(secret, SECRET)
    await home.apply("d", "acme", quotaStore=unreachable)
    await home.condition("d", "QuotaStoreReachable", "False")
    await home.apply("other", "acme")
    await home.settled("other")
    await delete(home, "d")
    await home.apply("other", "acme", "globex")
    await home.settled("other")
    assert await home.read(RESOURCE, "d") is not None
    await strip_finalizer(home, "d")
    await home.gone("d")


async def test_a_namespace_that_goes_with_all_that_is_in_it(
    home: Any, operators: Any, until: Any, until_leads: Any
) -> None:
    """Secrets, ledger and Deployment may be gone before it is our turn; nothing can be made there any more."""
    operator = operators(lease_namespace="default")
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme", "globex", replicas=2)
    await home.settled("d")
    use_quota(home, "d", "acme")
    await home.delete_namespace()
    await home.gone("d")
    assert home.store_keys("d") == set()
