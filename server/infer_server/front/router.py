"""The front of one tenant: a CURVE ROUTER on an inherited listening socket on one side, the gateway's stream on the other.

In flow clients' frames; out flow ipc messages to the gateway, and back. Sizes, rates and connections are bounded here, and
what is malformed is answered here. One thread, one poll loop, no locks. Runs only in a child forked by the supervisor: any
authenticated client can abort a libzmq process, so each tenant has its own.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import zmq

from infer_server import ipc, protocol
from infer_server.front import control, limits
from infer_server.front.connections import Connection, Connections
from infer_server.front.parse import Refusal, Request, parse
from infer_server.front.zap import Authenticator
from infer_server.protocol import Encoding, Err, Header, ServerHello

log = logging.getLogger(__name__)

BATCH = 64
"""messages read from clients between two looks at the other sockets"""
RETRY_BLOCKED_MS = 5
"""ZeroMQ does not say when one peer of a ROUTER can take messages again, so it is asked"""
FAREWELL_MS = 500
"""how long last answers may take to leave once the gateway has gone"""

CURVE_OVERHEAD = 64
"""bytes by which an encrypted frame may be longer than the frame in it (33, at present)"""

MONITOR_EVENT = struct.Struct("=hi")


class Front:
    """`run()` serves until the gateway closes its stream."""

    def __init__(
        self,
        *,
        tenant: str,
        users: Mapping[str, str],
        secret_key: bytes,
        listener: socket.socket,
        gateway: socket.socket,
        supervisor: socket.socket,
    ) -> None:
        self._tenant = tenant
        self._gateway, self._supervisor = gateway, supervisor
        self._boot = os.urandom(8).hex()
        self._connections = Connections()
        self._blocked: set[Connection] = set()
        self._backlog_bytes = 0
        self._log_rate = limits.TokenBucket(limits.LOG_LINES_PER_SECOND, limits.LOG_BURST, time.monotonic())
        self._num_unlogged = 0
        self._unsent = bytearray()
        self._deframer = ipc.Deframer()
        self._replies = msgspec.msgpack.Decoder(ipc.GatewayToFront)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._zap = Authenticator(self._context, tenant, users)  # bound before the ROUTER, or its first clients get in
        self._router = self._context.socket(zmq.ROUTER)
        self._configure(secret_key, listener)
        self._monitor = self._router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._endpoint = _address(listener)
        self._router.bind(self._endpoint)
        listener.detach()  # libzmq owns the descriptor now, and closes it
        gateway.setblocking(False)
        supervisor.setblocking(False)

    def _configure(self, secret_key: bytes, listener: socket.socket) -> None:
        """All options, then USE_FD. No HEARTBEAT_IVL: libzmq's heartbeat drops clients that are only slow to read."""
        for option, value in (
            (zmq.CURVE_SERVER, 1),
            (zmq.CURVE_SECRETKEY, secret_key),
            (zmq.ZAP_DOMAIN, self._tenant.encode()),
            (zmq.ZAP_ENFORCE_DOMAIN, 1),
            (zmq.ROUTER_MANDATORY, 1),  # else messages to a slow reader vanish without an error
            (zmq.ROUTER_HANDOVER, 0),
            (zmq.SNDHWM, 64),
            (zmq.RCVHWM, 16),  # of up to MAX_FRAME each
            (zmq.MAXMSGSIZE, protocol.MAX_FRAME + CURVE_OVERHEAD),
            (zmq.HANDSHAKE_IVL, 3000),
            (zmq.LINGER, 0),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 10),
            (zmq.TCP_MAXRT, 15000),
            (zmq.IPV6, int(listener.family == socket.AF_INET6)),
            (zmq.USE_FD, listener.fileno()),
        ):
            self._router.setsockopt(option, value)

    def run(self) -> None:
        log.info("front of %s: serves %s", self._tenant, self._endpoint)
        try:
            while True:
                self._step()
        except ConnectionError as error:
            log.info("front of %s: ends, %s", self._tenant, error)
        self._say_farewell()

    def _step(self) -> None:
        """One round: wait, then let each socket that is ready have its turn."""
        ready = self._poll()
        if self._zap.socket in ready:
            self._zap.answer_all()
        if self._monitor in ready:
            self._read_monitor()
        if self._router in ready:
            self._read_clients()
        if self._supervisor.fileno() in ready:
            self._read_supervisor()
        if ready.get(self._gateway.fileno(), 0) & ~zmq.POLLOUT:
            self._read_gateway()
        self._retry_blocked()
        self._flush_to_gateway()

    def _poll(self) -> dict[Any, int]:
        poller = zmq.Poller()
        poller.register(self._zap.socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._supervisor, zmq.POLLIN)
        poller.register(self._gateway, zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))
        if len(self._unsent) < limits.MAX_UNSENT_TO_GATEWAY:
            poller.register(self._router, zmq.POLLIN)
        return dict(poller.poll(RETRY_BLOCKED_MS if self._blocked else None))

    # --- clients -> gateway -------------------------------------------------------------------------------------------
    def _read_clients(self) -> None:
        for _ in range(BATCH):
            try:
                first, *rest = self._receive()
            except zmq.Again:
                return
            # An end that the monitor announced came before any message of a later connection: read it first, so that
            # a descriptor or routing id used again is not taken for the old connection.
            self._read_monitor()
            now = time.monotonic()
            connection = self._connection_of(first.bytes, rest[-1] if rest else first, now)
            if connection is not None:
                self.handle_message(connection, [frame.bytes for frame in rest], now)
            if len(self._unsent) >= limits.MAX_UNSENT_TO_GATEWAY:
                return

    def _receive(self) -> list[zmq.Frame]:
        """The routing id and at most three frames: more are read and thrown away, since two are allowed."""
        frames = [self._router.recv(zmq.NOBLOCK, copy=False)]
        while frames[-1].more:
            frame = self._router.recv(copy=False)
            if len(frames) < 4:
                frames.append(frame)
            else:
                frames[-1] = frame
        return frames

    def _connection_of(self, routing_id: bytes, frame: zmq.Frame, now: float) -> Connection | None:
        """The connection that a frame came by. None: it is not let in, or not any more."""
        fd = int(frame.get(zmq.SRCFD))
        connection = self._connections.current(routing_id, fd)
        if connection is None:
            for old in self._connections.superseded(routing_id, fd):
                self._forget(old, "disconnected")
            connection = self._connections.add(routing_id, fd, str(frame.get("User-Id")), now)
            if len(self._connections) > limits.MAX_CONNECTIONS:
                self._drop(connection, f"more than {limits.MAX_CONNECTIONS} connections")
                return None
        if self._zap.user(connection.public_key) is None:  # revoked while the message was under way
            self._drop(connection, "its key was revoked")
            return None
        return connection

    def handle_message(self, connection: Connection, frames: list[bytes], now: float) -> None:
        """One message of a client, without the routing id. Whatever it is, the connection is kept."""
        allowed = connection.rate.take(now)
        if frames == [b""]:  # PROBE_ROUTER, sent by libzmq itself on each new connection
            if allowed:
                self._send_hello(connection, Header(op="HELLO"), "json")
            return
        message = parse(frames)
        if not allowed:
            at_most = f"at most {limits.MESSAGES_PER_SECOND:.0f} messages a second"
            self._refuse(connection, message.header, message.encoding, "rate_limited", at_most, limits.RETRY_MS)
        elif isinstance(message, Refusal):
            self._refuse(connection, message.header, message.encoding, message.code, message.message)
        elif message.body is not None:
            self._submit(connection, message, message.body)
        elif message.header.op == "CANCEL":
            if message.header.key in connection.live:  # else it has just ended: its END is the answer
                self._to_gateway(ipc.Cancel(connection.id, message.header.key))
        elif message.header.op == "HELLO":
            self._send_hello(connection, message.header, message.encoding)
        else:
            self._send(connection, Header(op="PONG", rid=message.header.rid), {}, message.encoding)

    def _submit(self, connection: Connection, message: Request, body: protocol.Generate) -> None:
        header, encoding = message.header, message.encoding
        if header.key in connection.live:
            text = "this id is in use by a request of this connection that has not ended; it goes on undisturbed"
            self._refuse(connection, header, encoding, "duplicate_request", text)
            return
        if len(connection.live) >= limits.MAX_LIVE_REQUESTS:
            text = f"at most {limits.MAX_LIVE_REQUESTS} requests of one connection at a time"
            self._refuse(connection, header, encoding, "too_many_requests", text, limits.RETRY_MS)
            return
        user = self._zap.user(connection.public_key) or ""
        try:
            self._to_gateway(ipc.Submit(connection.id, header.key, user, body))
        except OverflowError:
            self._refuse(connection, header, encoding, "bad_request", "body: an integer is larger than 64 bits")
            return
        connection.live[header.key] = header.rid, encoding

    def _send_hello(self, connection: Connection, header: Header, encoding: Encoding) -> None:
        hello = ServerHello(
            version=protocol.VERSION,
            boot=self._boot,
            limits={
                "max_frame": protocol.MAX_FRAME,
                "max_rid": protocol.MAX_RID,
                "max_live_requests": limits.MAX_LIVE_REQUESTS,
            },
        )
        self._send(connection, Header(op="HELLO", rid=header.rid), hello, encoding)

    def _refuse(
        self,
        connection: Connection,
        header: Header,
        encoding: Encoding,
        code: str,
        message: str,
        retry_ms: int | None = None,
    ) -> None:
        err = Err(code=code, message=message, retry_ms=retry_ms)
        self._send(connection, Header(op="ERR", rid=header.rid), err, encoding)

    # --- gateway -> clients -------------------------------------------------------------------------------------------
    def _read_gateway(self) -> None:
        try:
            data = self._gateway.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the gateway has closed its stream")
        for body in self._deframer.feed(data):
            self._answer(self._replies.decode(body))

    def _answer(self, reply: ipc.Reply) -> None:
        connection = self._connections.by_id(reply.conn)
        if connection is None or reply.rid not in connection.live:
            return  # the client has gone while the gateway worked; it has been told
        rid, encoding = connection.live[reply.rid]
        if reply.op in ("END", "ERR"):
            del connection.live[reply.rid]
        self._send(connection, Header(op=reply.op, rid=rid), reply.body, encoding)

    def _send(self, connection: Connection, header: Header, body: Any, encoding: Encoding) -> None:
        """To one client, in order; never blocks. What ZeroMQ can't take yet waits here, up to a bound."""
        frames = [connection.routing_id, protocol.encode(header, encoding), protocol.encode(body, encoding)]
        if not connection.backlog:
            if self._try_send(connection, frames):
                return
            if self._connections.by_id(connection.id) is None:
                return
            connection.progress = time.monotonic()
        self._keep(connection, frames)

    def _try_send(self, connection: Connection, frames: list[bytes]) -> bool:
        try:
            self._router.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(connection, "disconnected")
            return False
        return True

    def _keep(self, connection: Connection, frames: list[bytes]) -> None:
        size = _size(frames)
        connection.backlog.append(frames)
        connection.backlog_bytes += size
        self._backlog_bytes += size
        self._blocked.add(connection)
        if connection.backlog_bytes > limits.MAX_BACKLOG_BYTES or self._backlog_bytes > limits.MAX_TOTAL_BACKLOG_BYTES:
            self._drop(connection, "it does not read its answers")

    def _retry_blocked(self) -> None:
        if not self._blocked:
            return
        now = time.monotonic()
        for connection in list(self._blocked):
            while connection.backlog and self._try_send(connection, connection.backlog[0]):
                size = _size(connection.backlog.popleft())
                connection.backlog_bytes -= size
                self._backlog_bytes -= size
                connection.progress = now
            if not connection.backlog:
                self._blocked.discard(connection)
            elif now - connection.progress > limits.BACKLOG_PATIENCE:
                self._drop(connection, "it does not read its answers")

    # --- ends of connections ------------------------------------------------------------------------------------------
    def _read_monitor(self) -> None:
        while True:
            try:
                event, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            connection = self._connections.by_fd(MONITOR_EVENT.unpack(event)[1])
            if connection is not None:
                self._forget(connection, "disconnected")

    def _drop(self, connection: Connection, reason: str) -> None:
        self._log_drop(reason)
        connection.shutdown()
        self._forget(connection, reason)

    def _log_drop(self, reason: str) -> None:
        if not self._log_rate.take(time.monotonic()):
            self._num_unlogged += 1
            return
        more = f"; {self._num_unlogged} more were not logged" if self._num_unlogged else ""
        self._num_unlogged = 0
        log.info("front of %s: drops a connection, %s%s", self._tenant, reason, more)

    def _forget(self, connection: Connection, reason: str) -> None:
        if self._connections.by_id(connection.id) is None:
            return
        self._connections.remove(connection)
        self._blocked.discard(connection)
        self._backlog_bytes -= connection.backlog_bytes
        connection.backlog.clear()
        connection.backlog_bytes = 0
        if connection.live:
            connection.live.clear()
            self._to_gateway(ipc.Gone(connection.id, reason))

    # --- gateway and supervisor ---------------------------------------------------------------------------------------
    def _to_gateway(self, message: ipc.FrontToGateway) -> None:
        self._unsent += ipc.frame(message)

    def _flush_to_gateway(self) -> None:
        if self._unsent:
            try:
                del self._unsent[: self._gateway.send(self._unsent)]
            except BlockingIOError:
                return
            except ConnectionError:  # its last answers may still be there to read, so the reader notices the end
                self._unsent.clear()

    def _read_supervisor(self) -> None:
        try:
            data = self._supervisor.recv(control.MAX_DATAGRAM)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the supervisor has closed its stream")
        command = control.decode(data)
        if isinstance(command, control.SetUsers):
            revoked = self._zap.replace(command.users)
            for connection in self._connections:
                if connection.public_key in revoked:
                    self._drop(connection, "its key was revoked")
        else:
            self._zap.closed = True
        self._supervisor.send(control.DONE)

    def _say_farewell(self) -> None:
        """Whoever still waits is told; then all that was said leaves, within FAREWELL_MS."""
        err = Err(code="unavailable", message="the server restarts: send the request again", retry_ms=500)
        for connection in self._connections:
            for rid, encoding in list(connection.live.values()):
                self._send(connection, Header(op="ERR", rid=rid), err, encoding)
        deadline = time.monotonic() + FAREWELL_MS / 1000
        while self._blocked and time.monotonic() < deadline:
            self._retry_blocked()
            time.sleep(RETRY_BLOCKED_MS / 1000)
        self._router.disable_monitor()
        self._monitor.close()
        self._zap.socket.close(linger=0)
        self._router.close(linger=FAREWELL_MS)
        self._context.term()


def _size(frames: list[bytes]) -> int:
    return sum(map(len, frames)) + limits.MESSAGE_OVERHEAD


def _address(listener: socket.socket) -> str:
    """What bind() is told; with USE_FD it must parse and is otherwise ignored."""
    host, port = listener.getsockname()[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
