"""A local port in, a ready pod of the tenant behind it: each connection gets one that is ready at that moment.

So when a pod ends, its connections end, and the client's next attempt leads to another pod. Whoever else connects to the local
port gets no further than the pod's own door: the connection is encrypted from end to end with the tenant's key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from infer_operator.connect import tunnel
from infer_operator.connect.access import Access, ready_pod, why_no_endpoint, why_no_pod
from infer_operator.connect.cluster import Cluster, ConnectError

HOST = "127.0.0.1"
CONNECT_SECONDS = 2.0
GREETING_SECONDS = 10.0


class Forwarder:
    def __init__(self, cluster: Cluster, access: Access, tell: Callable[[str], None]) -> None:
        self._cluster, self._access, self._tell = cluster, access, tell
        self._server: asyncio.Server | None = None
        self._told = ""
        """what was told last: a client that tries once a second is no reason to repeat it"""

    async def start(self, port: int) -> int:
        """The local port, once it is clear that a pod serves the tenant.

        Raises ConnectError.
        """
        await self._try()
        try:
            self._server = await asyncio.start_server(self._serve, HOST, port)
        except OSError as error:
            raise ConnectError(f"--local-port {port}: {error.strerror}; give another, or 0 for any") from error
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self) -> None:
        """No new connections; those that there are end with the loop."""
        if self._server is not None:
            self._server.close()

    async def _try(self) -> None:
        """A pod's endpoint speaks first, so its first bytes show that it is there."""
        access, kube = self._access, self._cluster.kube
        pod = await self._pod()
        try:
            async with self._tunnel(pod) as opened, asyncio.timeout(GREETING_SECONDS):
                async for _ in opened.parts():
                    return
        except (tunnel.TunnelError, TimeoutError):
            pass
        raise ConnectError(await why_no_endpoint(kube, access, pod))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            pod = await self._pod()
            async with self._tunnel(pod) as opened:
                await tunnel.pump(reader, writer, opened, lambda: self._say(f"connected to pod {pod}"))
        except tunnel.TunnelError:
            self._say(await why_no_endpoint(self._cluster.kube, self._access, pod))
        except ConnectError as error:
            self._say(str(error))
        finally:
            writer.close()

    def _tunnel(self, pod: str) -> AbstractAsyncContextManager[tunnel.Tunnel]:
        return tunnel.open_tunnel(self._cluster.api, self._access.namespace, pod, self._access.port)

    async def _pod(self) -> str:
        found = await ready_pod(self._cluster.kube, self._access)
        if found is None:
            raise ConnectError(await why_no_pod(self._cluster.kube, self._access))
        return found

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell(text)


async def can_be_reached(access: Access) -> bool:
    """Whether the tenant's endpoint can be reached from here as it is."""
    host, port = access.address
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
