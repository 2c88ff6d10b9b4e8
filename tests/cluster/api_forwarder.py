"""Lets the machine's own network reach the API server, which listens in the cluster's network namespace.

In: connections to 127.0.0.1:PORT here. Out: the same bytes to 127.0.0.1:PORT there, so one kubeconfig serves both. A
socket stays in the namespace in which it was made: this process listens first, then enters the other namespace to connect.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000
CHUNK_BYTES = 1 << 16


def enter_network(path: str) -> None:
    """Move this process into a network namespace (os.setns exists only from Python 3.12 on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"{path}: this network namespace can't be entered")
    os.close(descriptor)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until either side ends, then close the writing side."""
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass  # the other direction ends as well, by its own read
    finally:
        writer.close()


async def serve(listener: socket.socket, port: int) -> None:
    """Join each connection with one of its own to the API server."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            api_reader, api_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()  # no API server: the client sees a closed connection, as it would without this process
            return
        await asyncio.gather(copy(reader, api_writer), copy(api_reader, writer))

    server = await asyncio.start_server(join, sock=listener)
    await server.serve_forever()


def main() -> None:
    """`api_forwarder.py PORT NAMESPACE_PATH`"""
    port, namespace = int(sys.argv[1]), sys.argv[2]
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    enter_network(namespace)
    asyncio.run(serve(listener, port))


if __name__ == "__main__":
    main()
