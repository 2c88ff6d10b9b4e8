"""A pod with the real supervisor and real fronts, and the smallest gateway and engine that speak ipc.

    python miniature_pod.py serve --config pod.json
    python miniature_pod.py gateway|engine ...          started by the supervisor

The gateway follows the file `wishes.json` beside the configuration (tenant -> port, users), writes what it sees to
`events.jsonl`, and answers by the request's prompt: "count N", "tick N" (slowly), "flood N", "who" (tenant and user),
"hold" (until cancelled), "refuse CODE", "tell" (the request).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from infer_server import config as pod_config
from infer_server import ipc
from infer_server.front.supervisor import Supervisor

USAGE = {"prompt_tokens": 3, "cached_tokens": 1, "output_tokens": 2}


class Gateway:
    def __init__(self, folder: Path, control: socket.socket) -> None:
        self.folder, self.control = folder, control
        self.requests: dict[tuple[str, bytes, bytes], asyncio.Task[None]] = {}
        self.asked: dict[str, Any] = {}
        self.stopping = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    def note(self, **event: Any) -> None:
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def start(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        self.control.setblocking(False)
        loop.add_reader(self.control, self.on_control)
        self.note(event="gateway")
        while not self.stopping.is_set():
            self.follow()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), 0.02)
        await asyncio.gather(*self.requests.values())
        self.note(event="drained")

    def follow(self) -> None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            wishes = json.loads((self.folder / "wishes.json").read_bytes())
            for tenant in self.asked.keys() - wishes.keys():
                self.control.send(msgspec.msgpack.encode(ipc.CloseEndpoint(tenant)))
            for tenant, wish in wishes.items():
                if self.asked.get(tenant) != wish:
                    self.control.send(msgspec.msgpack.encode(ipc.OpenEndpoint(tenant, wish["port"], wish["users"])))
            self.asked = wishes

    def on_control(self) -> None:
        data, fds, _, _ = socket.recv_fds(self.control, 1 << 20, 1)
        if not data:
            self.stopping.set()
            asyncio.get_running_loop().remove_reader(self.control)
            return
        message = msgspec.msgpack.decode(data, type=ipc.SupervisorToGateway)
        if isinstance(message, ipc.EndpointFailed):
            self.note(event="failed", tenant=message.tenant, message=message.message)
            return
        self.note(event="link", kind=message.kind, tenant=message.tenant)
        self.start(self.serve(message, socket.socket(fileno=fds[0])))

    async def serve(self, link: ipc.Link, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        deframer, decoder = ipc.Deframer(), msgspec.msgpack.Decoder(ipc.FrontToGateway)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                for body in deframer.feed(data):
                    self.on_front(link.tenant, decoder.decode(body), writer)
        self.note(event="unlink", kind=link.kind, tenant=link.tenant)
        for key in [key for key in self.requests if key[0] == link.tenant]:
            self.requests.pop(key).cancel()
        writer.close()

    def on_front(self, tenant: str, message: ipc.FrontToGateway, writer: asyncio.StreamWriter) -> None:
        if isinstance(message, ipc.Submit):
            key = tenant, message.conn, message.rid
            self.requests[key] = self.start(self.answer(tenant, message, writer))
            self.requests[key].add_done_callback(lambda _: self.requests.pop(key, None))
        elif isinstance(message, ipc.Cancel):
            self.note(event="cancel", tenant=tenant)
            if task := self.requests.get((tenant, message.conn, message.rid)):
                task.cancel()
        else:
            self.note(event="gone", tenant=tenant, reason=message.reason)
            for key in [key for key in self.requests if key[:2] == (tenant, message.conn)]:
                self.requests.pop(key).cancel()

    async def answer(self, tenant: str, request: ipc.Submit, writer: asyncio.StreamWriter) -> None:
        def reply(op: str, **body: Any) -> None:
            writer.write(ipc.frame(ipc.Reply(request.conn, request.rid, op, body)))

        what, _, number = (request.request.prompt or "who").partition(" ")
        reply("ACK")
        try:
            if what == "hold":
                await asyncio.Event().wait()
            elif what == "refuse":
                reply("ERR", code=number, message="as you asked", retry_ms=50 if number == "queue_full" else None)
                return
            for seq in range(int(number) if number else 1):
                told = json.dumps(msgspec.to_builtins(request.request))
                texts = {"count": f"{seq} ", "flood": "x" * 4000, "who": f"{tenant} {request.user}"}
                text = texts.get(what, told)
                reply("TOK", seq=seq, text=text, token_ids=[seq])
                if what == "tick":
                    await asyncio.sleep(0.001)
                if seq % 16 == 0:
                    await writer.drain()
        except asyncio.CancelledError:
            reply("END", finish_reason="cancelled", usage=USAGE)
            return
        reply("END", finish_reason="stop", usage=USAGE)


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s: %(message)s", stream=sys.stderr)
    role, path = argv[0], Path(argv[2])
    if role == "serve":
        config = pod_config.load(path)
        return Supervisor(path, config, command=(sys.executable, str(Path(__file__).resolve()))).run()
    peer = socket.socket(fileno=int(argv[4]))
    if role == "gateway":
        asyncio.run(Gateway(path.parent, peer).run())
    else:
        while peer.recv(1 << 16):
            continue
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
