"""The reconciler with the local backend and a real store: it changes what is due and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from infer_operator import spec
from infer_operator.backends.local import POD_NAME, LocalBackend
from infer_operator.backends.state_dir import StateDir
from infer_operator.endpoints import QUARANTINE_SECONDS
from infer_operator.reconcile import Outcome, assign, compare, mint_tenant, reconcile
from infer_operator.state import (
    Change,
    DeleteObject,
    Key,
    Observed,
    RemoveTenants,
    Resource,
    SaveTenants,
    TenantRecord,
    WriteDocument,
    WriteObject,
)
from infer_operator.status import Health, Status
from infer_server.contract.document import DesiredState
from infer_server.contract.report import make_report
from infer_server.contract.store import DocumentStore

KEY = Key("local", "d")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def deployment(*tenants: str, engine: str = "{}", quota: str = "{}") -> spec.InferenceDeployment:
    listed = ", ".join(f"{{name: {name}, quota: {quota}}}" for name in tenants)
    text = f"""
apiVersion: inferengine.dev/v1alpha1
kind: InferenceDeployment
metadata: {{name: d}}
spec: {{model: {{uri: /models/m, name: m}}, engine: {engine}, tenants: [{listed}]}}
"""
    return spec.parse(text.encode())


class Home:
    """A local backend with its store, driven by hand."""

    def __init__(self, state: StateDir, url: str) -> None:
        self.state = state
        self.url = url
        self.clock = Clock()
        self.ready = True
        self.follows = True
        self.documents = DocumentStore(url, "local", "d")
        self.backend = LocalBackend(state, self.documents, store_url=url, http_port=9400, health=self._health)

    async def _health(self) -> Health:
        return Health(self.ready, "PodReady" if self.ready else "PodNotReady", "", {"pod": 7}, "http://x/metrics")

    async def apply(self, wanted: spec.InferenceDeployment) -> Outcome:
        self.backend.put(wanted)
        return await self.reconcile()

    async def reconcile(self) -> Outcome:
        """And once more after the pod had its time to take over what was written."""
        outcome = await self.reconcile_once()
        if outcome.look_again is None or not self.follows:
            return outcome
        await self.follow()
        return dataclasses.replace(outcome, status=(await self.reconcile_once()).status, look_again=None)

    async def reconcile_once(self) -> Outcome:
        return await reconcile(KEY, self.backend, clock=self.clock)

    async def follow(self, *obstacles: str) -> None:
        """What a pod does."""
        await self.documents.report(POD_NAME, make_report((await self.document()).version, list(obstacles)))

    async def document(self) -> DesiredState:
        document = await self.documents.read()
        assert document is not None
        return document

    async def status(self) -> Status:
        status = await self.backend.last_status(KEY)
        assert status is not None
        return status

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Each file with its inode: a file that is written again has another."""
        found = (path for path in self.state.path.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_ino, path.read_bytes()) for path in found}


@pytest.fixture
async def home(state: StateDir, valkey: Any) -> AsyncIterator[Home]:
    home = Home(state, valkey.url)
    yield home
    home.backend.ports.close()
    await home.documents.close()


def kinds(outcome: Outcome) -> list[str]:
    return [type(change).__name__ for change in outcome.changes]


async def test_the_first_run_makes_everything(home: Home) -> None:
    outcome = await home.apply(deployment("acme", "globex"))
    assert not outcome.retry
    document = await home.document()
    assert (document.namespace, document.deployment, document.version.revision) == ("local", "d", 1)
    assert [t.name for t in document.tenants] == ["acme", "globex"]
    acme = json.loads((home.state.path / "credentials/acme.json").read_bytes())
    assert set(acme) == {"endpoint", "serverPublicKey", "clientPublicKey", "clientSecretKey"}
    assert acme["endpoint"] == f"tcp://127.0.0.1:{document.tenants[0].port}"
    assert document.tenants[0].public_keys == (acme["clientPublicKey"],)
    assert len({t.port for t in document.tenants}) == len({t.uid for t in document.tenants}) == 2


async def test_no_secret_enters_the_store(home: Home) -> None:
    await home.apply(deployment("acme"))
    body = str(await home.document())
    record = home.backend.records()["acme"]
    assert record.client_secret_key not in body
    assert record.client_public_key in body


async def test_a_second_run_writes_nothing(home: Home) -> None:
    await home.apply(deployment("acme", "globex"))
    before = home.files()
    for _ in range(3):
        home.clock.now += 3600
        outcome = await home.apply(deployment("acme", "globex"))
        assert outcome.changes == ()
    assert home.files() == before
    assert (await home.document()).version.revision == 1


async def test_everything_is_private(home: Home) -> None:
    await home.apply(deployment("acme"))
    for path in home.state.path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_new_limits_change_the_document_only(home: Home) -> None:
    await home.apply(deployment("acme"))
    before = home.files()
    outcome = await home.apply(deployment("acme", quota="{requestsPerMinute: 5}"))
    assert kinds(outcome) == ["WriteDocument"]
    document = await home.document()
    assert document.tenants[0].quota.requests_per_minute == 5
    assert (document.version.generation, document.version.revision) == (2, 2)
    changed = {Path(name).name for name, content in home.files().items() if before[name] != content}
    assert changed == {"resource.json", "ledger.json", "status.json"}


async def test_engine_settings_change_the_pod_s_file(home: Home) -> None:
    await home.apply(deployment("acme"))
    outcome = await home.apply(deployment("acme", engine="{maxBatchSize: 4}"))
    assert kinds(outcome) == ["WriteObject", "WriteDocument"]
    assert json.loads((home.state.path / "pod.json").read_bytes())["engine"]["max_batch_size"] == 4


async def test_others_are_untouched_when_a_tenant_comes(home: Home) -> None:
    await home.apply(deployment("acme"))
    first = (await home.document()).tenants[0]
    await home.apply(deployment("aaa", "acme"))
    document = await home.document()
    assert [t.name for t in document.tenants] == ["aaa", "acme"]
    assert document.tenants[1] == first


async def test_a_tenant_that_comes_back_is_another_one(home: Home) -> None:
    await home.apply(deployment("acme", "globex"))
    before = (await home.document()).tenants[1]
    outcome = await home.apply(deployment("acme"))
    assert kinds(outcome) == ["WriteDocument", "DeleteObject", "RemoveTenants"]
    assert not (home.state.path / "credentials/globex.json").exists()
    assert not (home.state.path / "tenants/globex.json").exists()
    await home.apply(deployment("acme", "globex"))
    after = (await home.document()).tenants[1]
    assert after.uid != before.uid
    assert after.public_keys != before.public_keys
    assert after.port != before.port


async def test_a_port_rests_ten_minutes(home: Home) -> None:
    await home.apply(deployment("acme", "globex"))
    port = (await home.document()).tenants[1].port
    await home.apply(deployment("acme"))
    home.clock.now += QUARANTINE_SECONDS - 1
    await home.apply(deployment("acme", "one"))
    assert (await home.document()).tenants[1].port != port
    home.clock.now += 1
    await home.apply(deployment("acme", "one", "two"))
    assert (await home.document()).tenants[2].port == port


def with_keys(wanted: spec.InferenceDeployment, *public_keys: str) -> spec.InferenceDeployment:
    """Its first tenant has keys of its own."""
    first, *others = wanted.spec.tenants
    first = msgspec.structs.replace(first, auth=spec.AuthSpec(public_keys=public_keys))
    changed = msgspec.structs.replace(wanted.spec, tenants=(first, *others))
    return msgspec.structs.replace(wanted, spec=changed)


async def test_a_tenant_s_own_keys_come_and_go(home: Home) -> None:
    def credentials() -> dict[str, str]:
        found: dict[str, str] = json.loads((home.state.path / "credentials/acme.json").read_bytes())
        return found

    own, next_one = "1" * 40, "2" * 40
    await home.apply(deployment("acme", "globex"))
    first, given = (await home.document()).tenants, credentials()
    await home.apply(with_keys(deployment("acme", "globex"), own))
    assert credentials() == {name: given[name] for name in ("endpoint", "serverPublicKey")}
    assert given["clientSecretKey"] not in str(home.files())  # nothing brings it back
    changed = (await home.document()).tenants
    assert changed == (msgspec.structs.replace(first[0], public_keys=(own,)), first[1])
    outcome = await home.apply(with_keys(deployment("acme", "globex"), own, next_one))
    assert kinds(outcome) == ["WriteDocument"]
    assert (await home.document()).tenants[0].public_keys == (own, next_one)
    await home.apply(deployment("acme", "globex"))
    last = (await home.document()).tenants[0]
    assert last.public_keys == (credentials()["clientPublicKey"],)
    assert last.public_keys[0] not in (own, next_one, given["clientPublicKey"])
    assert (last.uid, last.port) == (first[0].uid, first[0].port)


async def test_uid_port_and_keys_outlive_suspension_and_restart(home: Home) -> None:
    await home.apply(deployment("acme"))
    before = (await home.document()).tenants[0]
    suspended = spec.parse(
        b"{apiVersion: inferengine.dev/v1alpha1, kind: InferenceDeployment, metadata: {name: d}, spec: "
        b"{model: {uri: /models/m, name: m}, tenants: [{name: acme, suspend: true}]}}"
    )
    again = Home(home.state, home.url)
    await again.apply(suspended)
    after = (await again.document()).tenants[0]
    again.backend.ports.close()
    await again.documents.close()
    assert after.suspended
    assert (after.uid, after.port, after.public_keys) == (before.uid, before.port, before.public_keys)


async def test_what_was_damaged_by_hand_is_mended(home: Home) -> None:
    await home.apply(deployment("acme"))
    good = (home.state.path / "credentials/acme.json").read_bytes()
    (home.state.path / "credentials/acme.json").write_bytes(b"{}")
    (home.state.path / "credentials/stranger.json").write_bytes(b"{}")
    (home.state.path / "pod.json").unlink()
    assert sorted(kinds(await home.reconcile())) == ["DeleteObject", "WriteObject", "WriteObject"]
    assert (home.state.path / "credentials/acme.json").read_bytes() == good


async def test_the_store_is_down_for_a_while(home: Home, valkey: Any) -> None:
    await home.apply(deployment("acme", "globex"))
    valkey.stop()
    outcome = await home.apply(deployment("acme", "third"))
    assert outcome.retry
    assert kinds(outcome) == ["SaveTenants", "WriteObject"]
    status = await home.status()
    assert status.condition("QuotaStoreReachable").status == "False"
    assert status.condition("TenantsProgrammed").status == "Unknown"
    assert not status.ready
    assert (home.state.path / "tenants/globex.json").exists()  # its endpoint is still open
    valkey.start()
    outcome = await home.reconcile()
    assert kinds(outcome) == ["WriteDocument", "DeleteObject", "RemoveTenants"]
    assert [t.name for t in (await home.document()).tenants] == ["acme", "third"]
    assert (await home.status()).ready


async def test_a_store_that_lost_its_writes_gets_a_newer_revision(home: Home, valkey: Any) -> None:
    await home.apply(deployment("acme"))
    await home.apply(deployment("acme", "globex"))
    async with Redis.from_url(home.url) as redis:
        await redis.flushall()
    outcome = await home.reconcile()
    assert kinds(outcome) == ["WriteDocument"]
    document = await home.document()
    assert document.version.revision == 3
    assert [t.name for t in document.tenants] == ["acme", "globex"]


async def test_tenants_are_programmed_when_the_pod_follows(home: Home) -> None:
    """An edit is told of once its pod has had a moment to take it over, as what it then is."""
    home.follows = False
    outcome = await home.apply(deployment("acme"))
    assert (outcome.status, outcome.look_again) == (None, 0.25)
    assert await home.backend.last_status(KEY) is None
    told = []
    for say in (None, "endpoint of local/d/acme: is not open yet", ""):
        if say is not None:
            await home.follow(*filter(None, [say]))
        home.clock.now += 8
        outcome = await home.reconcile_once()
        assert outcome.changes == ()
        condition = (await home.status()).condition("TenantsProgrammed")
        told.append((condition.status, condition.reason, outcome.look_again, (await home.status()).ready))
    assert told == [
        ("Unknown", "NotReported", 0.25, False),
        ("False", "Following", 0.25, False),
        ("True", "Programmed", None, True),
    ]
    home.follows = True
    await home.apply(deployment("acme", "globex"))
    assert (await home.status()).ready


async def test_the_longer_a_pod_lags_the_less_often_it_is_looked_at(home: Home) -> None:
    await home.apply(deployment("acme"))
    home.follows = False
    await home.apply(deployment("acme", "globex"))
    waits = []
    for seconds in (0, 4, 6, 3600):
        home.clock.now += seconds
        waits.append((await home.reconcile_once()).look_again)
    assert waits == [0.25, 2, 5, 15]
    message = (await home.status()).condition("TenantsProgrammed").message
    assert message == "0 of 1 pods follow revision 2\npod local has revision 1"


async def test_a_refused_edit_is_told_in_the_status(home: Home) -> None:
    await home.apply(deployment("acme"))
    home.backend.rejected = ("spec.x: unknown field",)
    await home.reconcile()
    accepted = (await home.status()).condition("Accepted")
    assert (accepted.status, accepted.reason, accepted.message) == ("False", "Invalid", "spec.x: unknown field")
    await home.apply(deployment("acme"))
    assert (await home.status()).condition("Accepted").status == "True"


async def test_a_condition_keeps_the_time_of_its_last_change(home: Home) -> None:
    home.ready = False
    first = await home.apply(deployment("acme"))
    home.clock.now += 60
    await home.follow()
    home.ready = True
    second = await home.reconcile()
    assert first.status is not None
    assert second.status is not None
    for type, changed in {"Available": True, "Ready": True, "Accepted": False, "TenantsProgrammed": False}.items():
        before, after = first.status.condition(type), second.status.condition(type)
        assert (before.last_transition_time != after.last_transition_time) is changed, type


async def test_nothing_happens_without_a_resource(home: Home) -> None:
    assert await home.reconcile() == Outcome((), None, retry=False)


async def test_a_crash_between_any_two_changes_is_made_good(home: Home) -> None:
    """Stop after each number of changes in turn; the next run ends where an undisturbed one would."""
    await home.apply(deployment("acme", "globex"))
    for stop_after in itertools.count():
        names = ("acme", f"new{stop_after}") if stop_after % 2 else ("acme", "globex", f"other{stop_after}")
        home.backend.put(deployment(*names))
        crashed = await apply_some(home, stop_after)
        await home.reconcile()
        document = await home.document()
        assert [t.name for t in document.tenants] == list(names)
        assert set(home.backend.records()) == set(names)
        assert {Path(n).stem for n in home.state.names("credentials")} == set(names)
        assert len({t.port for t in document.tenants}) == len(names)
        if not crashed:
            return


async def apply_some(home: Home, count: int) -> bool:
    """The first `count` changes that are due; whether there were more."""
    observed = await home.backend.observe(KEY)
    assert observed.resource is not None
    records = assign(observed.resource, observed, home.backend.claim_port, mint_tenant, home.clock())
    wanted = home.backend.build(KEY, observed.resource, records)
    changes = list(compare(KEY, observed.resource, records, wanted, observed, home.clock(), home.backend.same))
    for change in changes[:count]:
        await home.backend.apply(KEY, change)
    return len(changes) > count


def test_changes_come_in_an_order_that_a_crash_cannot_harm() -> None:
    def record(name: str, port: int) -> TenantRecord:
        return TenantRecord(name=name, uid=name, port=port, client_public_key="k" * 40, client_secret_key="s" * 40)

    resource = Resource(uid="u", generation=1, deployment=deployment("new"))
    observed = Observed(resource=resource, records={"old": record("old", 1)}, objects={"old": b"", "same": b"x"})
    changes: list[Change] = list(
        compare(
            KEY,
            resource,
            {"new": record("new", 2)},
            {"new": b"y", "same": b"x"},
            observed,
            100.0,
            lambda _, a, b: a == b,
        )
    )
    document = changes[2]
    assert isinstance(document, WriteDocument)
    assert changes == [
        SaveTenants((record("new", 2),)),
        WriteObject("new", b"y"),
        document,
        DeleteObject("old"),
        RemoveTenants((record("old", 1),), 100.0 + QUARANTINE_SECONDS),
    ]
