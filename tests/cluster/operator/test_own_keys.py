"""Tenants that bring public keys of their own, on a real API server: what their Secrets hold; whose a key is stays clear."""

from __future__ import annotations

from typing import Any

from infer_operator import keys
from infer_operator.kube import DEPLOYMENT, RESOURCE, SECRET


def tenant(name: str, *public_keys: str) -> dict[str, Any]:
    return {"name": name, "auth": {"publicKeys": list(public_keys)}}


async def test_own_keys_come_change_and_go_and_restart_no_pod(home: Any, operator: Any, until: Any) -> None:
    first, second = keys.curve_pair()[0], keys.curve_pair()[0]
    await home.apply("d", tenant("acme", first), "globex")
    await home.settled("d")
    before = home.entries("d")
    generation = (await home.get(DEPLOYMENT, "d"))["metadata"]["generation"]
    assert before["acme"].public_keys == (first,)
    given = await home.secret("d.acme")
    assert given.keys() == {"endpoint", "serverPublicKey"}
    assert given["serverPublicKey"] == (await home.secret("d.globex"))["serverPublicKey"]

    secret = await home.get(SECRET, "d.acme")
    await home.apply("d", tenant("acme", first, second), "globex")
    await home.settled("d")
    assert home.entries("d")["acme"].public_keys == (first, second)
    assert await home.get(SECRET, "d.acme") == secret

    await home.apply("d", "acme", "globex")

    async def has_a_pair() -> bool:
        entry, found = home.entries("d")["acme"], await home.read(SECRET, "d.acme")
        return found is not None and (await home.secret("d.acme")).get("clientPublicKey") == entry.public_keys[0]

    await until(has_a_pair, "a pair is made once it has no keys of its own")
    made = await home.secret("d.acme")
    await home.apply("d", tenant("acme", second), tenant("globex", first))

    async def is_own() -> bool:
        entries = home.entries("d")
        return bool(entries["acme"].public_keys == (second,) and entries["globex"].public_keys == (first,))

    await until(is_own, "own keys again")
    for name in ("d.acme", "d.globex"):
        assert (await home.secret(name)).keys() == {"endpoint", "serverPublicKey"}
    assert made["clientSecretKey"] not in str(await home.objects())
    after = home.entries("d")
    assert [(after[name].uid, after[name].port) for name in before] == [
        (before[name].uid, before[name].port) for name in before
    ]
    assert (await home.get(DEPLOYMENT, "d"))["metadata"]["generation"] == generation


async def test_no_two_tenants_have_one_key(home: Any, operator: Any) -> None:
    key, other = keys.curve_pair()[0], keys.curve_pair()[0]
    await home.apply("d", tenant("acme", key), "globex")
    await home.settled("d")
    before = home.document("d")
    await home.apply("d", tenant("acme", key), tenant("globex", other, key))
    await home.condition("d", "Accepted", "False", "spec.tenants[1].auth.publicKeys[1]: got ")
    assert home.document("d") == before
    await home.apply("d", tenant("acme", key), tenant("globex", other))
    await home.condition("d", "Accepted", "True")
    await home.settled("d")
    assert home.entries("d")["globex"].public_keys == (other,)


async def test_a_key_that_was_taken_away_is_gone_whatever_is_in_the_secret_s_place(
    home: Any, operator: Any, until: Any
) -> None:
    key = keys.curve_pair()[0]
    await home.apply("d", tenant("acme", key))
    await home.settled("d")
    await home.delete(SECRET, "d.acme")
    foreign = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "d.acme", "namespace": home.namespace}}
    await home.kube.create(foreign, SECRET)
    await home.kube.merge(RESOURCE, home.namespace, "d", {"spec": {"tenants": [{"name": "acme"}]}})

    async def is_out() -> bool:
        return key not in home.entries("d")["acme"].public_keys

    await until(is_out, "its own key has no access any more")
    await home.condition("d", "Degraded", "True", "d.acme")


async def test_a_foreign_secret_keeps_nobody_out_who_has_an_own_key(home: Any, operator: Any, until: Any) -> None:
    foreign = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "d.acme", "namespace": home.namespace}}
    made = await home.kube.create(foreign, SECRET)
    key = keys.curve_pair()[0]
    await home.apply("d", tenant("acme", key), "globex")
    await home.condition("d", "Degraded", "True", "d.acme")
    await home.settled("d")
    assert home.entries("d")["acme"].public_keys == (key,)
    assert await home.get(SECRET, "d.acme") == made
