"""The Python client of a tenant: text in, text out, over one encrypted connection; for threads and for asyncio.

    with Client.from_credentials("acme.json") as client:
        print(client.generate("Once upon a time", max_tokens=32).text)
        for delta in client.stream(messages=[{"role": "user", "content": "Hello"}]):
            print(delta.text, end="")

A client may be used by many threads, or many tasks, at once: one background thread owns its connection. It reconnects by
itself; what was under way on a lost connection fails with ConnectionLost and may be sent again.
"""

from infer_server.client._aio import AsyncClient, AsyncStream
from infer_server.client._credentials import Credentials
from infer_server.client._errors import (
    AuthenticationFailed,
    ConnectionLost,
    InferError,
    Rejected,
    Retryable,
    Timeout,
)
from infer_server.client._results import Completion, Delta
from infer_server.client._sync import Client, Stream
from infer_server.protocol import Usage

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AuthenticationFailed",
    "Client",
    "Completion",
    "ConnectionLost",
    "Credentials",
    "Delta",
    "InferError",
    "Rejected",
    "Retryable",
    "Stream",
    "Timeout",
    "Usage",
]
