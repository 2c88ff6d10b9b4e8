"""What the clients for threads and for asyncio share: how one is made, and the state of one answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from infer_server.client._credentials import Credentials
from infer_server.client._errors import InferError
from infer_server.client._results import Completion, Delta, Event
from infer_server.client._session import Session
from infer_server.protocol import Generate, Usage


class BaseClient:
    """connect_timeout: seconds a request may wait for a connection before it fails with ConnectionLost.
    silence_timeout: seconds without any sign of life, with requests under way, after which the connection counts as lost; the
        server is asked for one after a third of it, so a long computation is no silence.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        server_public_key: str,
        client_public_key: str,
        client_secret_key: str,
        connect_timeout: float = 10.0,
        silence_timeout: float = 15.0,
    ) -> None:
        credentials = Credentials(
            endpoint=endpoint,
            server_public_key=server_public_key,
            client_public_key=client_public_key,
            client_secret_key=client_secret_key,
        )
        self._session = Session(credentials, connect_timeout, silence_timeout)

    @classmethod
    def from_credentials(
        cls,
        path: str | Path,
        *,
        secret_key_file: str | Path | None = None,
        connect_timeout: float = 10.0,
        silence_timeout: float = 15.0,
    ) -> Self:
        """secret_key_file: for a tenant with a key pair of its own, whose secret half is in no credentials file.

        Raises OSError, or ValueError that names the file and the field.
        """
        fields = msgspec.structs.asdict(Credentials.load(path, secret_key_file))
        return cls(**fields, connect_timeout=connect_timeout, silence_timeout=silence_timeout)

    def __del__(self) -> None:
        if hasattr(self, "_session"):
            self._session.close(wait=False)


class BaseStream:
    """One answer as it arrives. After the end `finish_reason` and `usage` are set.

    Leaving early cancels: break out of the loop, leave its `with` block, or close().
    """

    def __init__(
        self,
        client: BaseClient,
        request: Generate,
        sink: Callable[[Event], None],
        timeout: float | None,
        whole: bool,
    ) -> None:
        """timeout: seconds, for the whole answer or for each wait."""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.ttft_ms: float | None = None
        self._timeout, self._whole = timeout, whole
        self._over = False
        self._started = time.monotonic()
        self._deltas: list[Delta] = []
        self._client = client  # kept from being collected, and so from closing, under the answer
        self._rid = client._session.submit(request, sink)

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._client._session.cancel(self._rid)

    def __del__(self) -> None:
        if hasattr(self, "_rid"):
            self.close()

    def _patience(self) -> float | None:
        """How long the next wait may take."""
        if self._timeout is None or not self._whole:
            return self._timeout
        return max(0.0, self._started + self._timeout - time.monotonic())

    def _take(self, event: Event) -> Delta | None:
        """The delta, or None at the end. Raises what the request failed with."""
        if isinstance(event, Delta):
            if self.ttft_ms is None:
                self.ttft_ms = (time.monotonic() - self._started) * 1000
            if self._whole:
                self._deltas.append(event)
            return event
        self._over = True
        if isinstance(event, InferError):
            raise event
        self.finish_reason, self.usage = event.finish_reason, event.usage
        return None

    def _completion(self) -> Completion:
        assert self.finish_reason is not None
        assert self.usage is not None
        logprobs = [entry for delta in self._deltas for entry in delta.logprobs or ()]
        return Completion(
            text="".join(delta.text for delta in self._deltas),
            token_ids=[token_id for delta in self._deltas for token_id in delta.token_ids],
            finish_reason=self.finish_reason,
            usage=self.usage,
            logprobs=logprobs or None,
            ttft_ms=self.ttft_ms,
        )
