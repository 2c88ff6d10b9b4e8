"""What `inferengine connect` tells when there is nothing to connect to; pods find no node here, so none is ever ready."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from infer_operator.kube import RESOURCE, SECRET


async def complaint(home: Any, *arguments: str) -> str:
    command = [sys.executable, "-m", "infer_server.commands", "connect", "--namespace", home.namespace, *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, told = await process.communicate()
    assert (process.returncode, out) == (1, b""), (out, told)
    return told.decode()


async def test_which_deployments_and_tenants_there_are(home: Any, operator: Any) -> None:
    assert f"no InferenceDeployment in namespace {home.namespace}: give another" in await complaint(
        home, "--tenant=acme"
    )
    await home.apply("one", "acme", "globex")
    await home.apply("two", "acme")
    await home.settled("one")
    await home.settled("two")
    assert "'acme' is in several deployments" in (told := await complaint(home, "--tenant=acme"))
    assert told.endswith(": name one, two\n")
    told = await complaint(home, "--tenant=initech")
    assert "has a tenant 'initech': one has acme, globex; two has acme" in told
    assert "one has no tenant 'initech'; there is acme, globex" in await complaint(home, "one", "--tenant=initech")
    assert "no InferenceDeployment 'three' in namespace" in (told := await complaint(home, "three", "--tenant=acme"))
    assert told.endswith("; there is one, two\n")


async def test_what_is_not_ready(home: Any, operator: Any) -> None:
    await home.apply("one", "acme")
    await home.settled("one")
    ready = await home.condition("one", "Ready", "False", "finds no node")
    told = await complaint(home, "--tenant=acme")  # found without its name
    assert f"no pod of one is ready in namespace {home.namespace}: {ready['message']}" in told
    assert operator.stop() == 0
    await home.delete(SECRET, "one.acme")
    assert "there is no Secret one.acme in namespace" in (told := await complaint(home, "one", "--tenant=acme"))
    assert f" yet: {ready['message']}" in told
    resource = await home.get(RESOURCE, "one")
    conditions = [one | {"status": "True"} for one in resource["status"]["conditions"]]
    body = {"apiVersion": resource["apiVersion"], "kind": resource["kind"], "status": {"conditions": conditions}}
    body["metadata"] = {"name": "one", "namespace": home.namespace}
    await home.kube.apply(body, RESOURCE, subresource="status")
    told = await complaint(home, "one", "--tenant=acme")
    assert " yet: the operator makes a missing one within half a minute: try again" in told
    await home.apply("two", "acme")
    told = await complaint(home, "two", "--tenant=acme")
    assert " yet: no operator has looked at it yet" in told
