"""One client's connection and the thread that owns it.

In flow requests and cancellations from any thread; out flow each request's events, by its sink, called on the session's
thread. A ZeroMQ socket must not be shared by threads, hence one owner; that it serves asyncio as well costs one wake-up.

    S1  A request is sent only on a connection whose HELLO has come, and at most once.
    S2  Each sink gets deltas in order, then exactly one End or InferError, unless it was cancelled: then nothing more.
    S3  What was sent on a connection fails when that connection ends: the server has dropped it too.
"""

from __future__ import annotations

import collections
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zmq

from infer_server import protocol
from infer_server.client._connection import Connection, RefusedError
from infer_server.client._credentials import Credentials
from infer_server.client._errors import AuthenticationFailed, ConnectionLost, InferError, Rejected, from_wire
from infer_server.client._results import Delta, Event
from infer_server.protocol import End, Err, Generate, Header, ServerHello, Tok

log = logging.getLogger(__name__)

EMPTY_BODY = msgspec.msgpack.encode({})


@dataclass(slots=True, eq=False)
class Request:
    """Written by the session's thread once submitted."""

    rid: bytes
    body: bytes
    sink: Callable[[Event], None]
    give_up: float
    """when it fails if no connection has been made by then"""
    sent: bool = False
    next_seq: int = 0


class Session:
    def __init__(self, credentials: Credentials, connect_timeout: float, silence_timeout: float) -> None:
        self._credentials, self._connect_timeout = credentials, connect_timeout
        self._silence_timeout = silence_timeout
        self._ping_after = silence_timeout / 3
        self._lock = threading.Lock()
        """guards starting and closing; commands need none, a deque's append and popleft being atomic"""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._commands: collections.deque[Request | bytes] = collections.deque()
        """a request to send, or the id of one to cancel"""
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        # the thread's own:
        self._requests: dict[bytes, Request] = {}
        self._unsent: collections.deque[bytes] = collections.deque()
        self._connection: Connection | None = None
        self._boot: str | None = None
        self._heard = 0.0
        self._pinged: float | None = None

    # --- for any thread -----------------------------------------------------------------------------------------------
    def submit(self, request: Generate, sink: Callable[[Event], None]) -> bytes:
        """Returns the request's id. The sink must not block or raise. Raises Rejected for a request that is too large."""
        rid, body = uuid.uuid4().bytes, protocol.encode(request, "msgpack")
        if len(body) > protocol.MAX_FRAME:
            text = f"the request is {len(body)} bytes long; at most {protocol.MAX_FRAME} are allowed"
            raise Rejected("too_large", text)
        command = Request(rid, body, sink, time.monotonic() + self._connect_timeout)
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="infer-client", daemon=True)
                self._thread.start()
            self._commands.append(command)
        self._wake()
        return rid

    def cancel(self, rid: bytes) -> None:
        """Also of a request that has ended: nothing happens then."""
        self._commands.append(rid)
        self._wake()

    def close(self, wait: bool = True) -> None:
        """What is under way fails with ConnectionLost."""
        with self._lock:
            was_closed, self._closed = self._closed, True
            thread = self._thread
        if thread is None:
            if not was_closed:
                self._wake_reader.close()
                self._wake_writer.close()
            return
        self._wake()
        if wait and thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            return  # full: it is awake already; or closed: nothing is left to do

    # --- the thread ---------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        reason = "the client was closed"
        try:
            while not self._closed:
                self._step(context)
        except Exception as error:
            log.exception("the client's thread has failed")
            reason = f"the client has failed: {error!r}"
            with self._lock:
                self._closed = True
        finally:
            self._disconnect()
            self._take_commands()
            self._fail(list(self._requests.values()), ConnectionLost(reason))
            self._wake_reader.close()
            self._wake_writer.close()
            context.term()

    def _step(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._take_commands()
        now = time.monotonic()
        if self._requests and self._connection is None:
            self._connection = Connection(context, self._credentials)
        self._read_monitor()
        self._send_unsent()
        self._watch(now)
        if self._wake_reader.fileno() in self._poll(now):
            self._wake_reader.recv(4096)
        if self._connection is not None:
            self._read(self._connection)

    def _poll(self, now: float) -> dict[object, int]:
        poller = zmq.Poller()
        poller.register(self._wake_reader, zmq.POLLIN)
        times = [self._requests[rid].give_up for rid in self._unsent]
        if self._connection is not None:
            poller.register(self._connection.monitor, zmq.POLLIN)
            writing = self._connection.ready and bool(self._unsent)
            poller.register(self._connection.socket, zmq.POLLIN | (zmq.POLLOUT if writing else 0))
        if self._requests and len(self._unsent) < len(self._requests):
            times.append(self._heard + (self._ping_after if self._pinged is None else self._silence_timeout))
        return dict(poller.poll(int(max(0.0, min(times) - now) * 1000) + 1 if times else None))

    def _take_commands(self) -> None:
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, Request):
                self._requests[command.rid] = command
                self._unsent.append(command.rid)
            elif (request := self._requests.get(command)) is not None:
                self._abandon(request)

    def _send_unsent(self) -> None:
        """Keeps S1."""
        while self._unsent and self._connection is not None and self._connection.ready:
            request = self._requests[self._unsent[0]]
            if not self._connection.send(Header(op="REQ", rid=request.rid), request.body):
                return
            if len(self._unsent) == len(self._requests):  # nothing was under way, so silence begins to count now
                self._heard, self._pinged = time.monotonic(), None
            request.sent = True
            self._unsent.popleft()

    def _watch(self, now: float) -> None:
        """Gives up what waits too long for a connection; asks a silent server for a sign of life."""
        late = [self._requests[rid] for rid in self._unsent if now >= self._requests[rid].give_up]
        if late:
            why = self._connection.trouble if self._connection is not None else "no attempt succeeded"
            text = f"no connection to {self._credentials.endpoint} within {self._connect_timeout:g} s: {why}"
            self._fail(late, ConnectionLost(text))
        if self._connection is None or len(self._unsent) >= len(self._requests):
            return
        if self._pinged is None and now >= self._heard + self._ping_after:
            self._pinged = now
            self._connection.send(Header(op="PING"), EMPTY_BODY)
        elif self._pinged is not None and now >= self._heard + self._silence_timeout:
            self._disconnect()
            self._lost(f"the server has not answered for {self._silence_timeout:g} s")

    # --- what the server says -----------------------------------------------------------------------------------------
    def _read(self, connection: Connection) -> None:
        for header_frame, body in connection.receive_all():
            self._heard, self._pinged = time.monotonic(), None
            header = protocol.decode(header_frame, Header)
            if header.op == "HELLO":
                self._greeted(connection, protocol.decode(body, ServerHello))
            elif (request := self._requests.get(header.key)) is not None:
                self._answered(request, header.op, body)
            elif header.op == "ERR" and header.rid is None:
                log.error("%s complains: %s", self._credentials.endpoint, protocol.decode(body, Err).message)

    def _read_monitor(self) -> None:
        if self._connection is None:
            return
        try:
            if self._connection.read_monitor():
                self._lost("the connection to the server was lost")
        except RefusedError:
            self._disconnect()
            self._fail(list(self._requests.values()), AuthenticationFailed(self._credentials.endpoint))

    def _greeted(self, connection: Connection, hello: ServerHello) -> None:
        self._read_monitor()  # the end of the connection before this one, lest it be taken for this one's
        if self._boot not in (None, hello.boot):
            self._lost("the server was started again")
        self._boot = hello.boot
        connection.ready = True

    def _answered(self, request: Request, op: str, body: bytes) -> None:
        """Keeps S2."""
        if op == "TOK":
            tok = protocol.decode(body, Tok)
            if tok.seq == request.next_seq:
                request.next_seq += 1
                request.sink(Delta(tok.text, tok.token_ids, tok.logprobs))
                return
            self._abandon(request)
            request.sink(ConnectionLost(f"a part of the answer is missing: got {tok.seq}, not {request.next_seq}"))
        elif op == "END":
            del self._requests[request.rid]
            request.sink(protocol.decode(body, End))
        elif op == "ERR":
            self._fail([request], from_wire(protocol.decode(body, Err)))

    # --- ends ---------------------------------------------------------------------------------------------------------
    def _lost(self, message: str) -> None:
        """Keeps S3. What has not been sent waits for the next connection."""
        self._pinged = None
        self._fail([request for request in self._requests.values() if request.sent], ConnectionLost(message))

    def _fail(self, requests: list[Request], error: InferError) -> None:
        for request in requests:
            del self._requests[request.rid]
            if not request.sent:
                self._unsent.remove(request.rid)
            request.sink(error)

    def _abandon(self, request: Request) -> None:
        """Its sink is not called for what the server still sends."""
        del self._requests[request.rid]
        if not request.sent:
            self._unsent.remove(request.rid)
        elif self._connection is not None:
            self._connection.send(Header(op="CANCEL", rid=request.rid), EMPTY_BODY)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
