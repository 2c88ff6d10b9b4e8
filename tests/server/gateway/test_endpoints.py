import asyncio
from collections.abc import Callable

from infer_server import ipc
from infer_server.contract.document import DesiredState, TenantEntry, Version
from infer_server.gateway.endpoints import Endpoints

ACME, BETA = "local/demo/acme", "local/demo/beta"
Orders = list[ipc.OpenEndpoint | ipc.CloseEndpoint]


def entry(name: str, *, uid: str = "u", port: int = 20000, keys: str = "k", suspended: bool = False) -> TenantEntry:
    return TenantEntry(
        name=name, uid=uid, port=port, public_keys=tuple(letter * 40 for letter in keys), suspended=suspended
    )


def document(*entries: TenantEntry) -> DesiredState:
    return DesiredState(
        version=Version(uid="d", generation=1, revision=1), namespace="local", deployment="demo", tenants=entries
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a timer of the loop
            await asyncio.sleep(0.01)


async def test_nothing_opens_before_requests_can_be_served() -> None:
    orders: Orders = []
    table = Endpoints(orders.append)
    assert table.obstacles() == ["no desired-state document was read yet"]
    table.apply(document(entry("acme"), entry("beta", port=20001, suspended=True)))
    assert orders == []
    table.serve()
    (order,) = orders
    assert isinstance(order, ipc.OpenEndpoint)
    assert (order.tenant, order.port, list(order.users)) == (ACME, 20000, ["k" * 40])
    assert table.obstacles() == [f"endpoint of {ACME}: is not open yet"]
    table.opened(ACME, object())
    assert table.obstacles() == []


async def test_only_what_changed_is_ordered_again() -> None:
    orders: Orders = []
    table = Endpoints(orders.append)
    table.serve()
    table.apply(document(entry("acme"), entry("beta", port=20001)))
    orders.clear()
    assert table.apply(document(entry("acme", keys="kl"), entry("beta", port=20001))) == {}
    (order,) = orders
    assert isinstance(order, ipc.OpenEndpoint)
    assert list(order.users) == ["k" * 40, "l" * 40]
    assert len(set(order.users.values())) == 2  # one User-Id per key


async def test_a_tenant_that_leaves_or_is_suspended_is_reported_and_its_endpoint_closed() -> None:
    orders: Orders = []
    table = Endpoints(orders.append)
    table.serve()
    table.apply(document(entry("acme"), entry("beta", port=20001)))
    orders.clear()
    assert table.apply(document(entry("beta", port=20001, suspended=True))) == {ACME: "removed", BETA: "suspended"}
    assert orders == []  # what was said last gets time to leave
    assert table.tenant(ACME) is None
    await until(lambda: len(orders) == 2)
    assert sorted(order.tenant for order in orders if isinstance(order, ipc.CloseEndpoint)) == [ACME, BETA]
    assert table.apply(document(entry("beta", port=20001, suspended=True))) == {}


async def test_a_tenant_that_returns_at_once_keeps_its_endpoint() -> None:
    orders: Orders = []
    table = Endpoints(orders.append)
    table.serve()
    beta = entry("beta", port=20001)
    table.apply(document(entry("acme"), beta))
    table.apply(document(entry("acme", suspended=True), beta))
    table.apply(document(entry("acme"), beta))
    table.apply(document(entry("acme")))
    await until(lambda: ipc.CloseEndpoint(BETA) in orders)  # by then acme would have been closed, too
    assert [type(order) for order in orders] == [ipc.OpenEndpoint, ipc.OpenEndpoint, ipc.CloseEndpoint]


async def test_a_new_uid_under_an_old_name_is_another_tenant() -> None:
    table = Endpoints(lambda order: None)
    table.apply(document(entry("acme", uid="u1")))
    assert table.apply(document(entry("acme", uid="u2"))) == {ACME: "removed"}


async def test_a_failure_is_an_obstacle_until_the_endpoint_opens() -> None:
    table = Endpoints(lambda order: None)
    table.serve()
    table.apply(document(entry("acme")))
    table.failed(ACME, "port 20000 is in use")
    assert table.obstacles() == [f"endpoint of {ACME}: port 20000 is in use"]
    first, second = object(), object()
    table.opened(ACME, first)
    table.opened(ACME, second)  # its front was started again
    table.lost(ACME, first)
    assert table.obstacles() == []
    table.lost(ACME, second)
    assert table.obstacles() == [f"endpoint of {ACME}: is not open yet"]
