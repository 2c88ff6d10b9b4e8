"""`helm test`: a spec in; an InferenceDeployment made of it, ready, and asked for tokens as its first tenant; then deleted.

It runs in the operator's image, which has the client, with rights of its own. Exit code 0: tokens came.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import secrets
import sys
import time
from pathlib import Path

from infer_operator.kube import RESOURCE, SECRET, Kube, KubeError, Object, connect
from infer_server.client import AsyncClient, InferError

POLL_SECONDS = 1.0
PROMPT = "The capital of France is"
TOKENS = 8


class FailedError(Exception):
    """What went wrong, for people."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--spec", type=Path, required=True, help="JSON")
    parser.add_argument("--timeout-seconds", type=float, required=True)
    args = parser.parse_args()
    spec = json.loads(args.spec.read_text())
    try:
        asyncio.run(run(args.namespace, spec, time.monotonic() + args.timeout_seconds))
    except (FailedError, InferError, KubeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


async def run(namespace: str, spec: Object, deadline: float) -> None:
    name = f"helm-test-{secrets.token_hex(4)}"
    manifest = {
        "apiVersion": RESOURCE.api_version,
        "kind": RESOURCE.name,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    async with await connect() as api:
        kube = Kube(api)
        made = await kube.create(manifest, RESOURCE)
        print(f"made {RESOURCE.name} {namespace}/{name}", flush=True)
        try:
            await until_ready(kube, namespace, name, deadline)
            await ask(kube, namespace, f"{name}.{spec['tenants'][0]['name']}", deadline)
        finally:
            await kube.delete(RESOURCE, namespace, name, made["metadata"]["uid"])


async def until_ready(kube: Kube, namespace: str, name: str, deadline: float) -> None:
    told = ""
    while True:
        found = await kube.read(RESOURCE, namespace, name)
        if found is None:
            raise FailedError(f"{RESOURCE.name} {namespace}/{name} was deleted by somebody")
        conditions = {one["type"]: one for one in found.get("status", {}).get("conditions", ())}
        ready = conditions.get("Ready", {"status": "Unknown", "message": "no operator has looked at it yet"})
        if ready["status"] == "True":
            print("ready", flush=True)
            return
        if ready["message"] != told:
            told = ready["message"]
            print(f"not ready: {told}", flush=True)
        if time.monotonic() > deadline:
            raise FailedError(f"not ready in time: {told}")
        await asyncio.sleep(POLL_SECONDS)


async def ask(kube: Kube, namespace: str, secret: str, deadline: float) -> None:
    found = await kube.read(SECRET, namespace, secret)
    if found is None:
        raise FailedError(f"ready, but there is no Secret {namespace}/{secret}")
    given = {key: base64.b64decode(value).decode() for key, value in found["data"].items()}
    async with AsyncClient(
        endpoint=given["endpoint"],
        server_public_key=given["serverPublicKey"],
        client_public_key=given["clientPublicKey"],
        client_secret_key=given["clientSecretKey"],
        connect_timeout=60,
    ) as client:
        seconds = max(1.0, deadline - time.monotonic())
        done = await client.generate(PROMPT, max_tokens=TOKENS, temperature=0, timeout=seconds)
    print(f"{PROMPT!r} -> {done.text!r}, {done.usage.output_tokens} tokens from {given['endpoint']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
