"""One connection to a port of a pod, through the API server: bytes in, bytes out.

It is `pods/portforward` over a WebSocket with the protocol v4.channel.k8s.io: each message begins with a channel's number, 0 for
data and 1 for the reason why there will be no more; the first message on either repeats the port. The official client has this
only for threads, without flow control; its asyncio half opens sockets but ignores a kubeconfig's proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aiohttp
from kubernetes.aio import client

from infer_operator.connect.access import allowed
from infer_operator.kube import POD, ApiError, UnreachableError

PROTOCOL = "v4.channel.k8s.io"
DATA, ERROR = 0, 1
CHUNK_BYTES = 32768
OPEN_SECONDS = 10.0
HEARTBEAT_SECONDS = 20.0
"""Load balancers before API servers drop what is silent for a minute or more."""


class TunnelError(Exception):
    """The far end says why: nothing listens there, the pod is gone."""


class Tunnel:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, data: bytes) -> None:
        """Waits while the far end takes no more."""
        await self._socket.send_bytes(bytes([DATA]) + data)

    async def parts(self) -> AsyncIterator[bytes]:
        """Until the connection ends. Raises TunnelError."""
        begun = set()
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                return
            channel, data = message.data[0], message.data[1:]
            if channel not in begun:
                begun.add(channel)
            elif channel == DATA:
                yield data
            else:
                raise TunnelError(data.decode(errors="replace").strip())


@contextlib.asynccontextmanager
async def open_tunnel(api: client.ApiClient, namespace: str, pod: str, port: int) -> AsyncIterator[Tunnel]:
    """Raises ConnectError; that nothing listens on the port is known only later, by TunnelError."""
    right = "create and get pods/portforward"
    async with await allowed(namespace, right, _open(api, POD.path(namespace, pod, "portforward"), port)) as socket:
        yield Tunnel(socket)


async def _open(api: client.ApiClient, path: str, port: int) -> aiohttp.ClientWebSocketResponse:
    """Raises KubeError."""
    settings = api.configuration
    _, url, headers, *_ = await api.param_serialize(
        "GET", path, query_params=[("ports", str(port))], auth_settings=["BearerToken"]
    )
    session: aiohttp.ClientSession = api.rest_client.pool_manager
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await session.ws_connect(
                url.replace("http", "ws", 1),
                protocols=(PROTOCOL,),
                headers=headers,
                heartbeat=HEARTBEAT_SECONDS,
                proxy=settings.proxy,
                proxy_headers=settings.proxy_headers,
                server_hostname=settings.tls_server_name,
            )
    except aiohttp.WSServerHandshakeError as error:
        raise ApiError(error.status, "Refused", f"{path}: {error.message}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UnreachableError(f"{path}: {error!r}") from error


async def pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tunnel: Tunnel, begun: Callable[[], None]
) -> None:
    """Bytes both ways until either side ends; `begun` is called at the far end's first. Raises TunnelError."""
    tasks = [asyncio.ensure_future(_up(reader, tunnel)), asyncio.ensure_future(_down(tunnel, writer, begun))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        with contextlib.suppress(OSError, aiohttp.ClientError):  # a connection that ended
            task.result()


async def _up(reader: asyncio.StreamReader, tunnel: Tunnel) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await tunnel.send(data)


async def _down(tunnel: Tunnel, writer: asyncio.StreamWriter, begun: Callable[[], None]) -> None:
    async for data in tunnel.parts():
        begun()
        writer.write(data)
        await writer.drain()
