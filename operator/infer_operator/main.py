"""`inferengine operator`: the operator of a cluster, from the command line to the last task.

kopf watches the InferenceDeployments and takes the signals; its handler does nothing but note what it saw. Everything else, the
children, the queue, the workers, is ours: kopf's own handlers and indexes cost two to three patches an object and miss deletions
after a 410. Only the leader works; another operator waits for the Lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import kopf

from infer_operator.cluster import Cluster
from infer_operator.controller import Controller
from infer_operator.kube import CHILDREN, OPTIONAL, POD, RESOURCE, Kube, KubeError, Object, connect
from infer_operator.lease import Lease
from infer_operator.metrics import Metrics
from infer_operator.monitoring import serving
from infer_operator.options import SWEEP_SECONDS, Options, parse
from infer_operator.rounds import Rounds
from infer_operator.state import Key
from infer_operator.store import Store, follow, follow_where_known
from infer_operator.workqueue import Lane, WorkQueue

log = logging.getLogger(__name__)

WORKERS = 16
SILENCE_SECONDS = 300.0
"""A bookmark comes each minute, and a dead connection is noticed after 150 s: longer silence of a watch is our own failure."""
LEASE_NAME = "inferengine-operator"


def operator(argv: list[str]) -> int:
    """Run the operator of a cluster: in a pod, or outside with KUBECONFIG."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        return asyncio.run(run(parse(argv)))
    except KubeError as error:
        print(f"inferengine operator: {error}", file=sys.stderr)
        return 1


async def run(options: Options) -> int:
    """0 after a signal, 1 when the lease was lost: then whoever starts us starts us anew. Raises KubeError."""
    metrics = Metrics()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # until kopf takes them over, which then ends all by itself
        loop.add_signal_handler(number, stop.set)
    async with await connect() as api:
        kube = Kube(api, metrics.on_request)
        if not await kube.exists(RESOURCE, options.watch_namespace):
            raise KubeError(f"the API server does not know {RESOURCE.plural}: apply manifests/crds first")
        watched = Operator(kube, options, metrics)
        lease = Lease(kube, options.namespace, LEASE_NAME, f"{socket.gethostname()}-{os.getpid()}")
        async with serving(options.port, metrics.registry, watched.trouble):
            lead = asyncio.ensure_future(
                lease.hold(lambda: watched.run(lease.uid), lambda leads: metrics.leader.set(leads))
            )
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait({lead, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if watched.running:  # it ends its own work on the signal
                await lead
            stopped.cancel()
            if not lead.done():
                lead.cancel()
                await asyncio.wait([lead])
                return 0
            return 0 if lead.result() else 1


class Operator:
    """Everything that runs while we lead."""

    def __init__(self, kube: Kube, options: Options, metrics: Metrics) -> None:
        self._kube = kube
        self._options = options
        self.metrics = metrics
        self.queue: WorkQueue[Key] = WorkQueue(WORKERS)
        self.store = Store(self.queue.add)
        self.running = False
        """while kopf runs, which ends everything on a signal"""
        metrics.observe_queue(lambda: self.queue.backlog.depth, lambda: self.queue.backlog.oldest_seconds)
        metrics.observe_watches(self.store.ages)
        metrics.observe_resources(self.store.readiness)

    async def run(self, operator_id: str) -> None:
        """Until a signal. Raises what ended one of the tasks."""
        cluster = Cluster(self._kube, self.store, self._options.context, self.metrics, self._options.look_seconds)
        cluster.stores.operator_id = operator_id
        cluster.only_namespace = self._options.watch_namespace
        controller = Controller(cluster)
        try:
            async with asyncio.TaskGroup() as group:
                # Ours first: at its end kopf cancels every task that is younger than itself.
                tasks = [group.create_task(self._sweep(controller))]
                tasks += await self._follow_all(group, cluster)
                tasks.append(group.create_task(self.queue.run(controller.reconcile)))
                rounds = Rounds(self.store.resources, self.queue.add, self._options.look_seconds)
                tasks.append(group.create_task(rounds.run()))
                self.running = True
                await kopf.operator(**self._kopf())
                for task in tasks:
                    task.cancel()
        finally:
            self.running = False
            await cluster.stores.close()

    async def _follow_all(self, group: asyncio.TaskGroup, cluster: Cluster) -> list[asyncio.Task[None]]:
        """Before any work: what is there already?"""
        namespace = self._options.watch_namespace
        tasks, listed = [], []
        for kind in (*CHILDREN, POD):
            event = asyncio.Event()
            listed.append(event)
            tasks.append(group.create_task(follow(self._kube, self.store, kind, event, namespace)))
        for kind in OPTIONAL:
            event = asyncio.Event()
            listed.append(event)
            tell = self._tell_known(cluster, event)
            again = self._options.sweep_seconds
            tasks.append(group.create_task(follow_where_known(self._kube, self.store, kind, tell, namespace, again)))
        await asyncio.gather(*(event.wait() for event in listed))
        await self._list_resources()
        return tasks

    def _tell_known(self, cluster: Cluster, looked: asyncio.Event) -> Callable[[bool], None]:
        """With a kind that comes or goes, every resource has something to make, or nothing left of it."""

        def tell(known: bool) -> None:
            looked.set()
            if cluster.context.pod_monitors != known:
                cluster.context = replace(cluster.context, pod_monitors=known)
                for raw in self.store.resources():
                    self.queue.add(Key(raw["metadata"]["namespace"], raw["metadata"]["name"]), Lane.RESYNC)

        return tell

    async def _list_resources(self) -> None:
        items, version = await self._kube.list(RESOURCE, namespace=self._options.watch_namespace)
        self.store.listed(RESOURCE, items, version)

    async def _sweep(self, controller: Controller) -> None:
        """kopf does not tell of deletions that it missed, and no watch tells of keys in stores."""
        while True:
            await asyncio.sleep(self._options.sweep_seconds)
            try:
                await self._list_resources()
                await controller.sweep_stores()
            except KubeError as error:
                log.warning("sweep: %s: again in %g s", error, self._options.sweep_seconds)

    def _kopf(self) -> dict[str, Any]:
        registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
        settings.posting.enabled = False  # no Events from log lines
        settings.scanning.disabled = True  # no watch of definitions and namespaces: ours is there before we start
        settings.watching.server_timeout = int(SWEEP_SECONDS)

        @kopf.on.login(registry=registry)  # kopf keeps an HTTP session of its own
        def login(**arguments: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

        group, version = RESOURCE.api_version.split("/")

        @kopf.on.event(group, version, RESOURCE.plural, registry=registry)
        async def on_event(event: Mapping[str, Any], **_: Any) -> None:
            self._saw(event)

        namespace = self._options.watch_namespace
        where = {"namespaces": [namespace]} if namespace else {"clusterwide": True}
        return {"registry": registry, "settings": settings, "standalone": True, **where}

    def _saw(self, event: Mapping[str, Any]) -> None:
        seen: Object = dict(event["object"])
        seen["metadata"] = {name: value for name, value in seen["metadata"].items() if name != "managedFields"}
        self.store.event(RESOURCE, event["type"] or "ADDED", seen, in_order=False)

    def trouble(self) -> str:
        """Why this process should be started anew; empty while it is well, also while another leads."""
        if not self.running:
            return ""
        # kopf gives no bookmarks on, so the age of the resources tells nothing.
        ages = {kind: age for kind, age in self.store.ages().items() if kind != RESOURCE.name}
        silent = sorted(kind for kind, age in ages.items() if age > SILENCE_SECONDS)
        return f"nothing heard for long of {', '.join(silent)}" if silent else ""
