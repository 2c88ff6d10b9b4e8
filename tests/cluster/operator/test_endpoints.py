"""Where tenants connect, on a real API server: Secrets and status follow what clouds and node ports give, and keys stay."""

from __future__ import annotations

from typing import Any

from infer_operator.kube import RESOURCE, SECRET, Kind

SERVICE = Kind("Service", "v1", "services")


async def endpoints(home: Any) -> dict[str, str]:
    """By tenant; in the Secret and in the status the same, or none."""
    told = (await home.get(RESOURCE, "d")).get("status", {}).get("tenants", ())
    return {
        tenant["name"]: tenant["endpoint"]
        for tenant in told
        if (await home.secret(f"d.{tenant['name']}"))["endpoint"] == tenant["endpoint"]
    }


async def become(home: Any, until: Any, expected: dict[str, str]) -> None:
    async def look() -> bool:
        return await endpoints(home) == expected

    await until(look, f"endpoints are {expected}")


async def services(home: Any) -> dict[str, Any]:
    items, _ = await home.kube.list(SERVICE, "inferengine.dev/tenant", home.namespace)
    return {item["metadata"]["labels"]["inferengine.dev/tenant"]: item for item in items}


async def give_address(home: Any, service: Any, ingress: dict[str, Any]) -> None:
    """What a cloud's controller does."""
    meta = {"name": service["metadata"]["name"], "namespace": home.namespace}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "status": {"loadBalancer": {"ingress": [ingress]}}}
    await home.kube.apply(body, SERVICE, subresource="status")


async def test_they_follow_load_balancers_and_node_ports(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme", "globex")
    await home.settled("d")
    secrets = {tenant: await home.get(SECRET, f"d.{tenant}") for tenant in ("acme", "globex")}
    within = {
        tenant: f"tcp://{one['metadata']['name']}.{home.namespace}.svc:5555"
        for tenant, one in (await services(home)).items()
    }
    await become(home, until, within)

    await home.apply("d", "acme", "globex", endpoints={"serviceType": "LoadBalancer"})
    await home.settled("d")
    await become(home, until, within)  # no address is known yet
    await give_address(home, (await services(home))["acme"], {"ip": "192.0.2.7"})
    await become(home, until, within | {"acme": "tcp://192.0.2.7:5555"})
    await give_address(home, (await services(home))["globex"], {"hostname": "lb.example.test"})
    await become(home, until, {"acme": "tcp://192.0.2.7:5555", "globex": "tcp://lb.example.test:5555"})

    balanced = {"serviceType": "LoadBalancer", "advertisedHost": "{tenant}.example.test"}
    await home.apply("d", "acme", "globex", endpoints=balanced)
    await become(home, until, {name: f"tcp://{name}.example.test:5555" for name in ("acme", "globex")})

    ported = {"serviceType": "NodePort", "advertisedHost": "nodes.example.test"}
    await home.apply("d", "acme", "globex", endpoints=ported)

    async def have_node_ports() -> bool:
        ports = {name: one["spec"]["ports"][0].get("nodePort") for name, one in (await services(home)).items()}
        return await endpoints(home) == {name: f"tcp://nodes.example.test:{port}" for name, port in ports.items()}

    await until(have_node_ports, "the Secrets name the nodes' ports")
    await home.kube.merge(
        RESOURCE, home.namespace, "d", {"spec": {"endpoints": {"serviceType": "ClusterIP", "advertisedHost": None}}}
    )
    await become(home, until, within)
    for tenant, before in secrets.items():
        after = await home.get(SECRET, f"d.{tenant}")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["data"] == before["data"]  # never other keys


async def test_new_keys_come_with_the_endpoint_outside(home: Any, operator: Any, until: Any) -> None:
    balanced = {"serviceType": "LoadBalancer", "advertisedHost": "{tenant}.example.test"}
    await home.apply("d", "acme", endpoints=balanced)
    await become(home, until, {"acme": "tcp://acme.example.test:5555"})
    before = await home.secret("d.acme")
    patch = {"metadata": {"annotations": {"inferengine.dev/rotate.acme": "now"}}}
    await home.kube.merge(RESOURCE, home.namespace, "d", patch)

    async def is_new() -> bool:
        found = await home.read(SECRET, "d.acme")
        return found is not None and (await home.secret("d.acme"))["clientPublicKey"] != before["clientPublicKey"]

    await until(is_new, "new keys")
    assert (await home.secret("d.acme"))["endpoint"] == "tcp://acme.example.test:5555"


async def test_an_endpoint_that_somebody_changed_is_mended(home: Any, operator: Any, until: Any) -> None:
    await home.apply("d", "acme")
    await home.settled("d")
    before = await home.get(SECRET, "d.acme")
    await home.kube.merge(SECRET, home.namespace, "d.acme", {"data": {"endpoint": "dGNwOi8vZXZpbDoxCg=="}})
    await home.apply("d", "acme", "globex")

    async def is_mended() -> bool:
        return bool((await home.get(SECRET, "d.acme"))["data"] == before["data"])

    await until(is_mended, "the endpoint is right again")
