"""A gateway whose peers the test plays: the supervisor, fronts and engine are raw ends of its sockets, the store is real."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import tokenizers
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import decoders, models, pre_tokenizers

from infer_engine.model.tokenizer import Tokenizer
from infer_server import ipc
from infer_server.config import PodConfig
from infer_server.contract.document import DesiredState, QuotaLimits, TenantEntry, Version
from infer_server.contract.report import PodReport
from infer_server.contract.store import DocumentStore
from infer_server.gateway.namespaces import NamespaceMinter
from infer_server.gateway.process import TOKENIZER_THREADS, GatewayProcess
from infer_server.protocol import Generate
from infer_server.quota.embedded import EmbeddedStore
from infer_server.quota.store import QuotaStore

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant', 'system'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "{{ message.role }}:{{ message.content }}\n{% endfor %}"
)
SECONDS = 20.0
"""Every wait ends by then; a machine under load needs some."""


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Every text is encodable, and each token is one byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    eos = backend.token_to_id("<eos>")
    assert eos is not None
    return Tokenizer(backend, chat_template=TEMPLATE, eos_token_ids=frozenset({eos}))


@pytest.fixture(scope="session")
def tokenizer_dir(byte_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer.backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_bytes(
        msgspec.json.encode({"eos_token": "<eos>", "chat_template": TEMPLATE})
    )
    return directory


class Store:
    """A real store that can be made not to answer for a while."""

    def __init__(self, embedded: EmbeddedStore) -> None:
        self.url = embedded.url
        assert embedded.pid is not None
        self._pid = embedded.pid

    def pause(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as embedded:
        store = Store(embedded)
        yield store
        store.resume()


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what follows from something else, with a deadline."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - the condition is another process's
            await asyncio.sleep(0.005)


class Peer:
    """The other end of a stream of the gateway."""

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self.closed = False

    async def start(self) -> socket.socket:
        """Returns the gateway's end."""
        theirs, mine = socket.socketpair()
        self._reader, self._writer = await asyncio.open_connection(sock=mine)
        self._task = asyncio.create_task(self._read())
        return theirs

    async def _read(self) -> None:
        deframer = ipc.Deframer()
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(1 << 16):
                for body in deframer.feed(data):
                    self.received(self._decoder.decode(body))
        self.closed = True

    def received(self, message: Any) -> None: ...

    def send(self, message: msgspec.Struct) -> None:
        self.send_bytes(ipc.frame(message))

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def close(self) -> None:
        self._writer.close()
        await self._task
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Front(Peer):
    def __init__(self) -> None:
        super().__init__(ipc.GatewayToFront)
        self._replies: dict[tuple[bytes, bytes], asyncio.Queue[ipc.Reply]] = defaultdict(asyncio.Queue)

    def received(self, message: ipc.Reply) -> None:
        self._replies[message.conn, message.rid].put_nowait(message)

    def submit(self, rid: bytes, conn: bytes = b"c", **fields: Any) -> None:
        fields = fields if {"messages", "token_ids"} & fields.keys() else {"prompt": "hello", **fields}
        self.send(ipc.Submit(conn, rid, "user", Generate(**fields)))

    async def reply(self, rid: bytes, conn: bytes = b"c") -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(SECONDS):
            message = await self._replies[conn, rid].get()
        return message.op, message.body

    async def outcome(self, rid: bytes, conn: bytes = b"c") -> tuple[str, dict[str, Any]]:
        """The last message of a request."""
        while True:
            op, body = await self.reply(rid, conn)
            if op in ("END", "ERR"):
                return op, body

    def silent(self, rid: bytes, conn: bytes = b"c") -> bool:
        return self._replies[conn, rid].empty()


class Engine(Peer):
    """Plays the engine: requests, cancellations and tenants' shares in, whatever the test sends out."""

    def __init__(self) -> None:
        super().__init__(ipc.GatewayToEngine)
        self.requests: asyncio.Queue[ipc.AddRequest] = asyncio.Queue()
        self.cancelled: asyncio.Queue[int] = asyncio.Queue()
        self.shares: asyncio.Queue[ipc.SetShares | ipc.DropTenant] = asyncio.Queue()

    def received(self, message: ipc.GatewayToEngine) -> None:
        match message:
            case ipc.AddRequest():
                self.requests.put_nowait(message)
            case ipc.CancelRequest():
                self.cancelled.put_nowait(message.id)
            case ipc.SetShares() | ipc.DropTenant():
                self.shares.put_nowait(message)

    async def request(self) -> ipc.AddRequest:
        async with asyncio.timeout(SECONDS):
            return await self.requests.get()

    async def cancellation(self) -> int:
        async with asyncio.timeout(SECONDS):
            return await self.cancelled.get()

    def tokens(self, id: int, text: str) -> None:
        """One token for each byte, as the tokenizer has it."""
        self.send(ipc.Tokens(id, self.tokenizer.encode(text)))

    def finish(
        self,
        request: ipc.AddRequest,
        output_tokens: int,
        reason: str = "length",
        cached_tokens: int = 0,
        prompt_tokens: int | None = None,
    ) -> None:
        """prompt_tokens: how far the engine came; by default to the end if there is output, else nowhere."""
        if prompt_tokens is None:
            prompt_tokens = len(request.token_ids) // 4 if output_tokens else 0
        self.send(ipc.Finished(request.id, reason, prompt_tokens, cached_tokens, output_tokens, 1.5))

    tokenizer: Tokenizer


class Pod:
    """Plays the supervisor. `entries` are the tenants of the document."""

    def __init__(self, config: PodConfig, quota: QuotaStore, tokenizer: Tokenizer, tokenizer_dir: Path) -> None:
        self.config, self.quota = config, quota
        self._tokenizer, self._tokenizer_dir = tokenizer, tokenizer_dir
        self.fronts: dict[str, Front] = {}
        self.orders: list[ipc.GatewayToSupervisor] = []
        self._revision = 0
        self.documents = DocumentStore(config.store_url, config.namespace, config.deployment)

    async def start(self, pool: ThreadPoolExecutor) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        minter = NamespaceMinter.from_file(self.config.namespace_key_file)
        self._gateway_documents = DocumentStore(self.config.store_url, self.config.namespace, self.config.deployment)
        self.process = GatewayProcess(self.config, theirs, minter, self._gateway_documents, self.quota, pool)
        self.running = asyncio.create_task(self.process.run())
        self._supervising = asyncio.create_task(self._supervise())

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._control, 1 << 16):
            order = msgspec.msgpack.decode(data, type=ipc.GatewayToSupervisor)
            self.orders.append(order)
            if isinstance(order, ipc.OpenEndpoint) and order.tenant not in self.fronts:
                await self.start_front(order.tenant)
            elif isinstance(order, ipc.CloseEndpoint):
                await self.fronts.pop(order.tenant).close()

    async def start_front(self, tenant: str) -> Front:
        front = self.fronts[tenant] = Front()
        self._link(ipc.Link("front", tenant), await front.start())
        return front

    async def start_engine(self, **changes: Any) -> Engine:
        engine = await self.link_engine()
        ready = ipc.EngineReady("tiny", str(self._tokenizer_dir), "rev", "kv", 100, 16, 1000, 257)
        engine.send(msgspec.structs.replace(ready, **changes))
        return engine

    async def link_engine(self) -> Engine:
        """One that has said nothing yet."""
        engine = Engine()
        engine.tokenizer = self._tokenizer
        self._link(ipc.Link("engine"), await engine.start())
        return engine

    def _link(self, link: ipc.Link, sock: socket.socket) -> None:
        socket.send_fds(self._control, [msgspec.msgpack.encode(link)], [sock.fileno()])
        sock.close()

    def report_failure(self, tenant: str, message: str) -> None:
        self._control.send(msgspec.msgpack.encode(ipc.EndpointFailed(tenant, message)))

    async def apply(self, *entries: TenantEntry) -> None:
        document = DesiredState(
            version=Version(uid="d", generation=1, revision=self._revision + 1),
            namespace=self.config.namespace,
            deployment=self.config.deployment,
            tenants=entries,
        )
        await self.documents.write(document, self._revision)
        self._revision += 1

    def id_of(self, tenant: str) -> str:
        return f"{self.config.namespace}/{self.config.deployment}/{tenant}"

    async def front(self, tenant: str) -> Front:
        """The tenant's front, once its endpoint was ordered and the pod is ready."""
        await until(lambda: self.id_of(tenant) in self.fronts)
        await self.ready()
        return self.fronts[self.id_of(tenant)]

    async def ready(self) -> None:
        await until(lambda: not self.process.obstacles())

    async def report(self) -> PodReport | None:
        """What it has told the operator last."""
        return (await self.documents.reports([self.config.pod_name]))[self.config.pod_name]

    async def settled(self, tenant: str = "acme") -> int:
        """Tokens charged to the tenant today, once nothing of it is live or reserved."""
        async with asyncio.timeout(SECONDS):
            while (usage := await self.quota.usage(self.id_of(tenant))).live:  # noqa: ASYNC110 - the store's state
                await asyncio.sleep(0.005)
        assert usage.day.reserved == 0
        return usage.day.used

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.config.http_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def metric(self, name: str, **labels: str) -> float:
        """0 where there is no such series."""
        _, text = await self.get("/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    async def close(self) -> None:
        self.process.stop()
        self._supervising.cancel()
        await asyncio.gather(self.running, self._supervising, return_exceptions=True)
        for peer in self.fronts.values():
            await peer.close()
        self._control.close()
        await self.documents.close()
        await self._gateway_documents.close()


DEPLOYMENTS = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def entry() -> Callable[..., TenantEntry]:
    def make(name: str = "acme", *, quota: dict[str, int] | None = None, **fields: Any) -> TenantEntry:
        return TenantEntry(
            name=name,
            uid=fields.pop("uid", f"uid-{name}"),
            port=fields.pop("port", 20000),
            public_keys=("k" * 40,),
            quota=QuotaLimits(**(quota or {})),
            **fields,
        )

    return make


@pytest.fixture
async def pod(store: Store, byte_tokenizer: Tokenizer, tokenizer_dir: Path, tmp_path: Path) -> AsyncIterator[Pod]:
    key_file = tmp_path / "namespace.key"
    key_file.write_text("ab" * 32)
    config = PodConfig(
        namespace="local",
        deployment=f"demo{next(DEPLOYMENTS)}",
        model="/nowhere",
        model_name="tiny",
        store_url=store.url,
        pod_name="p",
        server_key_file="/nowhere",
        namespace_key_file=str(key_file),
        http_port=free_port(),
        drain_seconds=0.2,
    )
    with ThreadPoolExecutor(TOKENIZER_THREADS) as pool:
        async with QuotaStore.open(store.url, timeout_seconds=0.5) as quota:
            pod = Pod(config, quota, byte_tokenizer, tokenizer_dir)
            await pod.start(pool)
            yield pod
            store.resume()
            await pod.close()


@pytest.fixture
async def engine(pod: Pod) -> AsyncIterator[Engine]:
    engine = await pod.start_engine()
    yield engine
    await engine.close()


@pytest.fixture
async def front(pod: Pod, engine: Engine, entry: Callable[..., TenantEntry]) -> Front:
    """Of the only tenant, acme, with the pod ready."""
    await pod.apply(entry())
    return await pod.front("acme")
