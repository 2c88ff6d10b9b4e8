"""The operator on a real API server: what it makes, what it mends, and that it leaves alone what needs nothing."""

from __future__ import annotations

import base64
from typing import Any

from infer_operator.backends.tenants import ROTATE_ANNOTATION
from infer_operator.kube import CONFIG_MAP, DEPLOYMENT, POD, RESOURCE, SECRET, Kind

SERVICE = Kind("Service", "v1", "services")
NETWORK_POLICY = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
BUDGET = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")


async def services(home: Any) -> dict[str, str]:
    """tenant -> name of its Service"""
    items, _ = await home.kube.list(SERVICE, "inferengine.dev/tenant", home.namespace)
    return {item["metadata"]["labels"]["inferengine.dev/tenant"]: item["metadata"]["name"] for item in items}


async def test_a_resource_gets_its_objects_keys_and_document(home: Any, operator: Any) -> None:
    await home.apply("d", {"name": "acme", "quota": {"requestsPerMinute": 60}}, "globex", replicas=2)
    resource = await home.settled("d")
    titles = {title.split("/")[0] for title in await home.objects()}
    expected = {"InferenceDeployment", "Secret", "Deployment", "Pod", "Service", "ConfigMap", "ServiceAccount"}
    assert expected | {"PodDisruptionBudget", "NetworkPolicy"} <= titles
    entries = home.entries("d")
    assert list(entries) == ["acme", "globex"]
    assert entries["acme"].quota.requests_per_minute == 60
    acme = await home.secret("d.acme")
    assert set(acme) == {"endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey"}
    assert entries["acme"].public_keys == (acme["clientPublicKey"],)
    assert acme["endpoint"] == f"tcp://{(await services(home))['acme']}.{home.namespace}.svc:5555"
    assert {tenant["name"] for tenant in resource["status"]["tenants"]} == {"acme", "globex"}
    for title, child in (await home.objects()).items():
        if not title.startswith(("InferenceDeployment/", "Pod/")):
            assert child["metadata"]["ownerReferences"][0]["uid"] == resource["metadata"]["uid"], title


async def test_no_secret_key_leaves_the_secrets(home: Any, operator: Any) -> None:
    await home.apply("d", "acme")
    await home.settled("d")
    hidden = {(await home.secret("d.acme"))["clientSecretKey"]}
    own = await home.secret("d")
    hidden |= {own["server.key"], own["namespace.key"], own["store.password"]}
    everything = {
        title: str(child) for title, child in (await home.objects()).items() if not title.startswith("Secret/")
    }
    everything["store"] = str(home.document("d"))
    assert [title for title, text in everything.items() if any(key in text for key in hidden)] == []


async def test_a_restart_with_nothing_to_do_writes_nothing(
    home: Any, operators: Any, until: Any, until_leads: Any
) -> None:
    first = operators()
    first.start()
    await until_leads(first)
    for name in ("a", "b"):
        await home.apply(name, "acme", "globex", replicas=2)
        await home.settled(name)
    before = await home.quiet()
    assert first.stop() == 0
    second = operators(sweep_seconds=1)
    second.start()
    await until_leads(second)

    async def has_swept() -> bool:
        lists = second.metrics()['inferengine_operator_requests_total{kind="InferenceDeployment",verb="list"}']
        return bool(lists >= 5)

    await until(has_swept, "some sweeps")
    assert second.writes() == {}
    assert await home.versions() == before


async def test_what_somebody_changed_or_deleted_is_mended(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", "globex", replicas=2)
    await home.settled("d")
    before, entries = await home.objects(), home.entries("d")
    name = (await services(home))["acme"]
    await home.delete(SERVICE, name)
    await home.delete(DEPLOYMENT, "d")
    await home.delete(BUDGET, "d")
    await home.kube.merge(NETWORK_POLICY, home.namespace, "d", {"spec": {"ingress": []}})
    await home.kube.merge(CONFIG_MAP, home.namespace, "d", {"data": {"pod.json": "{}"}})
    other = (await services(home))["globex"]
    await home.kube.merge(SERVICE, home.namespace, other, {"spec": {"selector": {"inferengine.dev/deployment": "x"}}})

    async def is_mended() -> bool:
        after = await home.objects()
        return all(
            title in after and after[title].get("spec", {}).get("selector") == child.get("spec", {}).get("selector")
            for title, child in before.items()
            if not title.startswith("Pod/")
        ) and (
            after["NetworkPolicy/d"]["spec"] == before["NetworkPolicy/d"]["spec"]
            and after["ConfigMap/d"]["data"] == before["ConfigMap/d"]["data"]
        )

    await until(is_mended, "everything is mended")
    assert home.entries("d") == entries


async def test_what_others_add_stays(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme")
    await home.settled("d")
    await home.kube.merge(DEPLOYMENT, home.namespace, "d", {"spec": {"replicas": 3}})  # as an autoscaler does
    await home.kube.merge(DEPLOYMENT, home.namespace, "d", {"metadata": {"annotations": {"mine": "1"}}})
    await home.apply("d", "acme", engine={"maxBatchSize": 8})
    await home.settled("d")

    async def has_rolled() -> bool:
        return '"max_batch_size": 8' in (await home.get(CONFIG_MAP, "d"))["data"]["pod.json"]

    await until(has_rolled, "the edit is applied")
    deployment = await home.get(DEPLOYMENT, "d")
    assert deployment["spec"]["replicas"] == 3
    assert deployment["metadata"]["annotations"]["mine"] == "1"


async def test_a_field_that_is_no_longer_wanted_goes(home: Any, operator: Any, until: Any) -> None:
    toleration = {"key": "gpu", "operator": "Exists"}
    scheduling = {"nodeSelector": {"no-such-node": "true", "zone": "a"}, "tolerations": [toleration]}
    await home.apply("d", "acme", scheduling=scheduling, replicas=2)
    await home.settled("d")
    manifest = home.manifest("d", "acme")["spec"]
    nothing = {"nodeSelector": {"zone": None}, "tolerations": None}
    await home.kube.merge(RESOURCE, home.namespace, "d", {"spec": manifest | {"scheduling": nothing, "replicas": 1}})

    async def has_gone() -> bool:
        pod = (await home.get(DEPLOYMENT, "d"))["spec"]["template"]["spec"]
        return "zone" not in pod["nodeSelector"] and "tolerations" not in pod and await home.read(BUDGET, "d") is None

    await until(has_gone, "old fields and the budget are gone")


async def test_tenants_come_go_change_and_restart_no_pod(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    generation = (await home.get(DEPLOYMENT, "d"))["metadata"]["generation"]
    first = home.entries("d")
    globex = await home.get(SECRET, "d.globex")

    await home.apply("d", "acme", "globex", "initech")
    await home.settled("d")
    assert home.entries("d")["initech"].port not in {first["acme"].port, first["globex"].port}
    assert (await home.secret("d.initech"))["clientPublicKey"] == home.entries("d")["initech"].public_keys[0]

    await home.apply(
        "d", {"name": "acme", "suspend": True}, {"name": "globex", "quota": {"tokensPerDay": 5}}, "initech"
    )
    await home.settled("d")
    assert home.entries("d")["acme"].suspended
    assert home.entries("d")["globex"].quota.tokens_per_day == 5
    assert home.entries("d")["acme"].uid == first["acme"].uid

    await home.apply("d", "globex", "initech")
    await home.settled("d")

    async def is_acme_gone() -> bool:
        return await home.read(SECRET, "d.acme") is None and "acme" not in await services(home)

    await until(is_acme_gone, "the Secret and the Service of the tenant that left are gone")
    await home.apply("d", "acme", "globex", "initech")
    await home.settled("d")
    again = home.entries("d")["acme"]
    assert (again.uid, again.port) != (first["acme"].uid, first["acme"].port)
    assert again.port not in {first["acme"].port, home.entries("d")["globex"].port}
    assert home.entries("d")["globex"].uid == first["globex"].uid
    assert (await home.get(SECRET, "d.globex"))["metadata"]["resourceVersion"] == globex["metadata"]["resourceVersion"]
    assert (await home.get(DEPLOYMENT, "d"))["metadata"]["generation"] == generation


async def rotated(home: Any, until: Any, before: Any) -> Any:
    async def look() -> Any:
        entry = home.entries("d")["acme"]
        found = await home.read(SECRET, "d.acme")
        return entry if found is not None and entry.public_keys != before.public_keys else None

    return await until(look, "there are new keys")


async def test_new_keys_by_annotation(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    before = home.entries("d")
    generation = (await home.get(DEPLOYMENT, "d"))["metadata"]["generation"]
    annotations = {f"{ROTATE_ANNOTATION}acme": "monday"}
    await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"annotations": annotations}})
    after = await rotated(home, until, before["acme"])
    assert (after.uid, after.port) == (before["acme"].uid, before["acme"].port)
    assert (await home.secret("d.acme"))["clientPublicKey"] == after.public_keys[0]
    # Once for each value, whatever else is edited.
    await home.apply("d", "acme", "globex", {"name": "third"})
    await home.settled("d")
    assert home.entries("d")["acme"] == after
    assert home.entries("d")["globex"] == before["globex"]
    assert (await home.get(DEPLOYMENT, "d"))["metadata"]["generation"] == generation


async def test_a_deleted_secret_is_made_anew_with_other_keys(
    home: Any, operators: Any, until: Any, until_leads: Any
) -> None:
    """No watch tells of it: it is noticed with the next look at its resource."""
    operator = operators(look_seconds=1)
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme")
    await home.settled("d")
    before = home.entries("d")["acme"]
    await home.delete(SECRET, "d.acme")
    after = await rotated(home, until, before)
    assert (after.uid, after.port) == (before.uid, before.port)
    assert (await home.secret("d.acme"))["clientPublicKey"] == after.public_keys[0]


async def test_an_edited_secret_is_told_of_and_mended_once_it_is_deleted(
    home: Any, operators: Any, until: Any, until_leads: Any
) -> None:
    operator = operators(look_seconds=1)
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    before = home.entries("d")["acme"]
    await home.kube.merge(SECRET, home.namespace, "d.acme", {"data": {"clientSecretKey": "bm8ga2V5"}})
    await home.condition("d", "Degraded", "True", "d.acme")
    assert home.entries("d")["acme"] == before
    await home.delete(SECRET, "d.acme")
    after = await rotated(home, until, before)
    assert (await home.secret("d.acme"))["clientPublicKey"] == after.public_keys[0]


async def test_a_store_s_new_url_is_followed(home: Any, operators: Any, until: Any, until_leads: Any) -> None:
    operator = operators(look_seconds=1)
    operator.start()
    await until_leads(operator)
    await home.apply("d", "acme")
    await home.settled("d")
    home.url = f"{home.url}/1"
    encoded = base64.b64encode(home.url.encode()).decode()
    await home.kube.merge(SECRET, home.namespace, "quota-store", {"data": {"url": encoded}})
    document = await until(lambda: _true(home.document("d")), "the document is in the other store")
    assert [entry.name for entry in document.tenants] == ["acme"]


async def test_a_lost_ledger_is_made_anew_from_the_secrets(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    before = home.document("d")
    await home.delete(CONFIG_MAP, "d.document")

    async def look() -> bool:
        return await home.read(CONFIG_MAP, "d.document") is not None

    await until(look, "the ledger is back")
    await home.apply("d", "acme", "globex", "third")
    await home.settled("d")
    after = home.document("d")
    assert after.tenants[:2] == before.tenants
    assert after.version.revision > before.version.revision


async def test_what_is_not_ours_is_left_alone_and_told(home: Any, operator: Any, until: Any) -> None:
    """A Secret of a tenant's name, and the pods' ConfigMap; both with our labels, so that only the owner tells."""
    labels = {"inferengine.dev/deployment": "d", "inferengine.dev/tenant": "acme"}
    foreign = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "d.acme", "labels": labels}, "data": {}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}, "data": {"pod.json": "mine"}},
    ]
    kinds = {"Secret": SECRET, "ConfigMap": CONFIG_MAP}
    made = []
    for manifest in foreign:
        manifest["metadata"]["namespace"] = home.namespace
        made.append(await home.kube.create(manifest, kinds[manifest["kind"]]))
    await home.apply("d", "acme", "globex")
    told = await home.condition("d", "Degraded", "True", "d.acme")
    assert f"ConfigMap {home.namespace}/d" in told["message"]
    await until(lambda: _true(home.document("d")), "the others are served")
    assert (await home.secret("d.globex"))["clientPublicKey"] == home.entries("d")["globex"].public_keys[0]
    key = home.entries("d")["acme"].public_keys
    await home.apply("d", "acme", "globex", "third")
    await until(lambda: _true("third" in home.entries("d")), "the edit is there")
    assert home.entries("d")["acme"].public_keys == key
    for before in made:
        after = await home.get(kinds[before["kind"]], before["metadata"]["name"])
        assert after == before
        await home.delete(kinds[before["kind"]], before["metadata"]["name"])

    async def is_ours() -> bool:
        secret, config = await home.read(SECRET, "d.acme"), await home.read(CONFIG_MAP, "d")
        return bool(secret and config and "ownerReferences" in secret["metadata"])

    await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"annotations": {"look": "again"}}})
    await until(is_ours, "both are made once their names are free")
    await until(lambda: _matches(home), "the document follows")


async def _true(value: Any) -> Any:
    return value


async def _matches(home: Any) -> bool:
    return bool((await home.secret("d.acme"))["clientPublicKey"] == home.entries("d")["acme"].public_keys[0])


async def test_names_that_could_collide_do_not(home: Any, operator: Any) -> None:
    await home.apply("a-b", "c")
    await home.apply("a", "b-c")
    await home.settled("a-b")
    await home.settled("a")
    one, other = await home.secret("a-b.c"), await home.secret("a.b-c")
    assert one["endpoint"] != other["endpoint"]
    assert one["clientPublicKey"] != other["clientPublicKey"]


async def test_what_the_api_server_refuses_is_told(home: Any, operator: Any) -> None:
    template = {"spec": {"containers": [{"name": "server", "imagePullPolicy": "Sometimes"}]}}
    await home.apply("d", "acme", podTemplate=template)
    await home.condition("d", "Degraded", "True", "imagePullPolicy")
    await home.apply(
        "d", "acme", podTemplate={"spec": {"containers": [{"name": "server", "imagePullPolicy": "Always"}]}}
    )
    await home.settled("d")
    await home.get(DEPLOYMENT, "d")


async def test_ready_pods_get_the_slots_and_keep_them(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", replicas=3)
    await home.settled("d")

    async def pods() -> list[Any]:
        found = (await home.kube.list(POD, "inferengine.dev/deployment=d", home.namespace))[0]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def slots(pod: Any) -> set[str]:
        return {name for name in pod["metadata"]["labels"] if name.startswith("slots.inferengine.dev/")}

    async def covered(ready: int) -> list[Any] | None:
        found = [pod for pod in await pods() if slots(pod)]
        counts = [sum(f"slots.inferengine.dev/{slot}" in slots(pod) for pod in found) for slot in range(64)]
        return found if len(found) == ready and set(counts) == {min(ready, 2)} else None

    await until(lambda: _count(pods, 3), "three pods")
    first, second, third = sorted(await pods(), key=lambda pod: pod["metadata"]["name"])
    await home.set_ready(first)
    await until(lambda: covered(1), "one pod has all slots")
    await home.set_ready(second)
    await until(lambda: covered(2), "two pods have all slots")
    before = {pod["metadata"]["name"]: slots(pod) for pod in await pods()}
    await home.set_ready(third)
    await until(lambda: covered(3), "each slot has two of three pods")
    for pod in await pods():
        if pod["metadata"]["name"] != third["metadata"]["name"]:
            assert slots(pod) <= before[pod["metadata"]["name"]]  # a newcomer takes slots, it moves none between others
    service = await home.get(SERVICE, (await services(home))["acme"])
    wanted = service["spec"]["selector"]
    chosen = [pod for pod in await pods() if wanted.items() <= pod["metadata"]["labels"].items()]
    assert len(chosen) == 2


async def _count(list_pods: Any, number: int) -> bool:
    return len(await list_pods()) == number


async def test_events_tell_of_transitions_only(home: Any, operator: Any, followers: None, until: Any) -> None:
    event = Kind("Event", "v1", "events")
    await home.apply("d", "acme")
    await home.settled("d")

    async def told() -> list[str]:
        items, _ = await home.kube.list(event, "", home.namespace)
        return [item["message"] for item in items if item["involvedObject"]["kind"] == RESOURCE.name]

    (pod,) = await until(lambda: _pods(home), "a pod")
    await home.set_ready(pod)
    await home.condition("d", "Available", "True")
    await until(lambda: _any(told, "Available is True"), "an Event")
    await home.quiet()
    before = await told()
    for number in range(3):
        await home.kube.merge(RESOURCE, home.namespace, "d", {"metadata": {"annotations": {"n": str(number)}}})
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    assert await told() == before


async def _pods(home: Any) -> list[Any]:
    return list((await home.kube.list(POD, "inferengine.dev/deployment=d", home.namespace))[0])


async def _any(told: Any, text: str) -> bool:
    return any(text in message for message in await told())
