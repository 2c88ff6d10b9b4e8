"""The life of one request: prepare, reserve, submit, stream, settle. One asyncio task runs it.

In flow the client's Generate and, by `stop`, reasons to end early; out flow ACK, TOK, then END or ERR. Whatever happens between
reserve and the end, the reservation is settled once with what the engine did.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import msgspec

from infer_engine.model.tokenizer import TextStream
from infer_server import ipc
from infer_server.gateway.admission import Prepared, prepare
from infer_server.gateway.engine_client import EngineClient, EngineEvent, EngineLost, ServedModel
from infer_server.gateway.errors import RefusedError, engine_unavailable
from infer_server.gateway.lane import Lane
from infer_server.gateway.leases import Held, Leases
from infer_server.gateway.namespaces import NamespaceMinter
from infer_server.gateway.streams import Mailbox, OutputStream
from infer_server.metrics import TenantMetrics
from infer_server.protocol import End, Generate, Usage
from infer_server.quota.errors import QuotaDenied, QuotaUnavailable
from infer_server.quota.reservation import Reservation, Use
from infer_server.quota.store import QuotaStore

log = logging.getLogger(__name__)

CANCEL_SECONDS = 10.0
"""How long the engine may take to answer a cancellation: a step, rarely more."""


@dataclass(frozen=True, slots=True)
class Services:
    """What every request uses."""

    served_model: str
    engine: EngineClient
    quota: QuotaStore
    leases: Leases
    minter: NamespaceMinter
    pool: Executor
    """Tokenises; its size bounds how much of the machine that takes."""


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks, and where answers go."""

    tenant_id: str
    tenant_uid: str
    metrics: TenantMetrics
    reply: Callable[[str, dict[str, Any]], None]
    """op and body to the client; goes nowhere once the client is gone"""
    is_behind: Callable[[], bool]
    """its front has much to read already: output waits here, to go out in larger portions"""
    lane: Lane


@dataclass(frozen=True, slots=True)
class Stop:
    """End early. With a refusal the client gets it as ERR; without, END with `finish_reason`."""

    finish_reason: str
    refusal: RefusedError | None = None


CANCELLED = Stop("cancelled")
CLIENT_GONE = Stop("client_gone")
STOP_STRING = Stop("stop")
LEASE_LOST = Stop(
    "lease_expired", RefusedError("lease_expired", "its quota reservation expired; send it once more", 1000)
)


class RequestTask:
    """`run` is started once; `stop` may be called at any time from the same event loop, the first call counts."""

    def __init__(self, request: Generate, requester: Requester, services: Services) -> None:
        self._request = request
        self._requester = requester
        self._services = services
        self._mailbox: Mailbox[EngineEvent | Stop] = Mailbox()
        self._stop: Stop | None = None
        self._arrived = time.monotonic()
        self._last_tokens = 0.0

    def stop(self, reason: Stop) -> None:
        if self._stop is None:
            self._stop = reason
            self._mailbox.put(reason)

    async def run(self) -> None:
        self._requester.metrics.started()
        end: End | RefusedError
        try:
            end = await self._serve()
        except RefusedError as refusal:
            end = refusal
        except Exception:  # a defect of ours: this request fails, no other does
            log.exception("a request of tenant %s failed", self._requester.tenant_id)
            end = RefusedError("internal", "the server failed on this request; its log says why")
        if isinstance(end, RefusedError):
            self._reply("ERR", end.to_err())
            self._requester.metrics.finished(end.code)
        else:
            self._reply("END", end)
            self._requester.metrics.finished(end.finish_reason)

    async def _serve(self) -> End | RefusedError:
        model = self._services.engine.model
        if model is None:
            raise engine_unavailable()
        async with self._requester.lane.turn:
            prepared = None if self._stop else await self._prepare(model)
            if prepared is None or self._stop is not None:
                return self._ending(NOTHING_DONE, Use())
            reservation = await self._reserve(prepared)
        use = Use()
        output = OutputStream(TextStream(model.tokenizer, prepared.stop), prepared.stop_token_ids)
        self._services.leases.hold(
            Held(
                reservation,
                used=lambda: Use(prepared.num_prompt_tokens, 0, output.num_tokens) if output.num_tokens else Use(),
                on_lost=lambda: self.stop(LEASE_LOST),
            )
        )
        try:
            finished = await self._run_on_engine(prepared, model, output)
            use = self._used(finished, output)
            ending = self._ending(finished, use)  # before the settlement: a stop that comes during it is too late
        finally:
            await self._services.leases.settle(reservation, use)
        self._requester.metrics.used(use)
        return ending

    async def _prepare(self, model: ServedModel) -> Prepared:
        return await asyncio.get_running_loop().run_in_executor(
            self._services.pool, prepare, self._request, model.ready, self._services.served_model, model.tokenizer
        )

    async def _reserve(self, prepared: Prepared) -> Reservation:
        metrics, request_id = self._requester.metrics, secrets.token_hex(16)
        try:
            reservation = await self._services.quota.reserve(
                self._requester.tenant_id,
                request_id,
                prompt_tokens=prepared.num_prompt_tokens,
                max_tokens=prepared.max_tokens,
            )
        except QuotaDenied as denied:
            metrics.quota_decided(denied.reason)
            refusal = RefusedError(f"quota_{denied.reason}", str(denied), denied.retry_ms)
            if denied.reason == "requests_per_minute":  # the one that is the same for every request
                self._requester.lane.shut(refusal)
            raise refusal from denied
        except QuotaUnavailable as error:
            metrics.quota_decided("unavailable")
            self._services.leases.withdraw(self._requester.tenant_id, request_id)
            raise RefusedError("quota_unavailable", "the quota store does not answer; retry", 1000) from error
        metrics.quota_decided("allowed")
        return reservation

    async def _run_on_engine(self, prepared: Prepared, model: ServedModel, output: OutputStream) -> ipc.Finished:
        """Until the engine is done with the request, or is lost."""
        engine = self._services.engine
        if self._stop is not None:
            return NOTHING_DONE
        if engine.model is not model:
            return _engine_lost(prepared, output)
        self._reply("ACK", None)
        id = engine.submit(
            self._mailbox.put,
            tenant=self._requester.tenant_id,
            namespace=self._services.minter.mint(self._requester.tenant_uid, model.identity, self._request.cache_salt),
            token_ids=prepared.token_ids,
            params=prepared.params,
            deadline_ms=self._deadline_ms(),
        )
        try:
            return await self._relay(id, prepared, output)
        finally:
            engine.forget(id)

    async def _relay(self, id: int, prepared: Prepared, output: OutputStream) -> ipc.Finished:
        give_up_at: float | None = None
        while True:
            try:
                async with asyncio.timeout_at(give_up_at):
                    events = await self._mailbox.take()
            except TimeoutError:
                log.error("the engine did not answer a cancellation within %g s", CANCEL_SECONDS)
                return _engine_lost(prepared, output)
            for event in events:
                match event:
                    case ipc.Tokens():
                        self._accept(event, output)
                    case ipc.Finished():
                        self._reply("TOK", output.last_tok())
                        if output.num_tokens:
                            self._requester.metrics.queued(event.queue_ms / 1000)
                        return event
                    case EngineLost():
                        return _engine_lost(prepared, output)
                    case Stop():
                        self._services.engine.cancel(id)
                        give_up_at = asyncio.get_running_loop().time() + CANCEL_SECONDS
            if not self._requester.is_behind():
                self._reply("TOK", output.next_tok())

    def _accept(self, tokens: ipc.Tokens, output: OutputStream) -> None:
        if self._stop is not None:  # what the engine made before it heard of the stop is not the client's
            return
        now = time.monotonic()
        if not output.num_tokens:
            self._requester.metrics.first_token(now - self._arrived)
        else:
            self._requester.metrics.next_tokens(now - self._last_tokens, len(tokens.token_ids))
        self._last_tokens = now
        output.push(tokens)
        if output.stopped:
            self.stop(STOP_STRING)

    def _deadline_ms(self) -> int | None:
        """What is left of the client's deadline; at least 1, so that the engine ends it in the one way it has."""
        if self._request.deadline_ms is None:
            return None
        return max(1, self._request.deadline_ms - round((time.monotonic() - self._arrived) * 1000))

    def _used(self, finished: ipc.Finished, output: OutputStream) -> Use:
        """What the engine computed, also for a request that was ended before its first token. Ours to pay are the tokens that
        the engine made after an early end, and a prompt on which it failed."""
        if finished.finish_reason == "error" and not output.num_tokens:
            return Use()
        return Use(
            computed_tokens=finished.prompt_tokens - finished.cached_tokens,
            cached_tokens=finished.cached_tokens,
            output_tokens=finished.output_tokens if self._stop is None else output.num_tokens,
        )

    def _ending(self, finished: ipc.Finished, use: Use) -> End | RefusedError:
        if self._stop is not None and self._stop.refusal is not None:
            return self._stop.refusal
        if self._stop is None and finished.error_code is not None:
            return RefusedError(finished.error_code, finished.error_message or "the engine failed", finished.retry_ms)
        usage = Usage(
            prompt_tokens=use.computed_tokens + use.cached_tokens,
            cached_tokens=use.cached_tokens,
            output_tokens=use.output_tokens,
        )
        reason = finished.finish_reason if self._stop is None else self._stop.finish_reason
        return End(finish_reason=reason, usage=usage)

    def _reply(self, op: str, body: msgspec.Struct | None) -> None:
        """A TOK of None is no TOK."""
        if self._stop is CLIENT_GONE or (body is None and op != "ACK"):
            return
        self._requester.reply(op, {} if body is None else msgspec.to_builtins(body))


NOTHING_DONE = ipc.Finished(0, "cancelled", 0, 0, 0, 0.0)


def _engine_lost(prepared: Prepared, output: OutputStream) -> ipc.Finished:
    """The engine can't tell any more what it did."""
    error = engine_unavailable()
    return ipc.Finished(
        id=0,
        finish_reason="error",
        prompt_tokens=prepared.num_prompt_tokens,
        cached_tokens=0,
        output_tokens=output.num_tokens,
        queue_ms=0.0,
        error_code=error.code,
        error_message=error.message,
        retry_ms=error.retry_ms,
    )
