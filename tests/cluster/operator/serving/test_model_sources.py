"""Models from a web server in the cluster and from a claim: looked at before they are served, refused where they are others."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import certifi
import pytest

from infer_engine.model.fetch.digest import content_digest
from infer_operator.kube import POD, RESOURCE, SECRET, Kind, Object

pytestmark = pytest.mark.our_cluster

NAME = "quickstart"
PROMPT = "Hello"
NODE_ADDRESS = "10.200.0.1"
"""of the cluster's real node, where the tests run too: pods reach servers there"""
PATIENCE_SECONDS, SERVE_SECONDS = 60, 240
SERVICE = Kind("Service", "v1", "services")
VOLUME = Kind("PersistentVolume", "v1", "persistentvolumes")
CLAIM = Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims")


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    """A folder on the node with a model in it, readable for everybody."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(tempfile.mkdtemp(prefix="ie-models-", dir="/var/tmp"))
    directory = folder / "tiny"
    directory.mkdir()
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=257, max_position_embeddings=256, eos_token_id=256, bos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(directory)
    for path in (folder, directory, *directory.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder  # mounted as a Directory, or a container that starts at the very end would make it anew
    shutil.rmtree(folder)


def template(fragment: Object) -> Object:
    """Where pods come by the software; their cache is the operator's own, which they may write."""
    env = [variable for variable in fragment["container"]["env"] if variable["name"] != "XDG_CACHE_HOME"]
    container = fragment["container"] | {"env": env}
    server = container | {"name": "server", "command": [fragment["python"], "-m", "infer_server"]}
    program = str(Path(fragment["python"]).with_name("inferengine"))
    authorities = {"name": "AWS_CA_BUNDLE", "value": certifi.where()}  # such a pod has no /etc/ssl
    fetch = container | {"name": "fetch", "command": [program, "fetch"], "env": [*env, authorities]}
    return {"spec": {"initContainers": [fetch], "containers": [server], "volumes": fragment["volumes"]}}


async def serve_files(home: Any, fragment: Object, folder: Path) -> None:
    """A web server at http://models in the namespace."""
    labels = {"app": "models"}
    container = fragment["container"] | {
        "name": "web",
        "command": [fragment["python"], "-m", "http.server", "8080", "--directory", "/models"],
    }
    mount = {"name": "folder", "mountPath": "/models", "readOnly": True}
    container["volumeMounts"] = [*container["volumeMounts"], mount]
    spec = {
        "terminationGracePeriodSeconds": 1,
        "nodeSelector": fragment["nodeSelector"],
        "containers": [container],
        "volumes": [*fragment["volumes"], {"name": "folder", "hostPath": {"path": str(folder), "type": "Directory"}}],
    }
    meta = {"name": "models", "namespace": home.namespace, "labels": labels}
    await home.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}, POD)
    ports = {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}
    await home.kube.create({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": ports}, SERVICE)


@pytest.fixture
async def claim(home: Any, models: Path) -> AsyncIterator[str]:
    """The folder as a claim in the namespace."""
    size = {"storage": "1Gi"}
    volume = {
        "accessModes": ["ReadOnlyMany"],
        "capacity": size,
        "claimRef": {"namespace": home.namespace, "name": "models"},
        "hostPath": {"path": str(models), "type": "Directory"},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    wanted = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": size}, "storageClassName": ""}
    meta = {"name": f"models-{home.namespace}", "namespace": ""}
    body = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta, "spec": volume}
    made = await home.kube.create(body, VOLUME)
    meta = {"name": "models", "namespace": home.namespace}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": wanted}
    await home.kube.create(body, CLAIM)
    yield "models"
    await home.kube.delete(VOLUME, "", made["metadata"]["name"], made["metadata"]["uid"])


@pytest.fixture(scope="module")
def s3_port(models: Path) -> Iterator[int]:
    """Of a server of the S3 protocol on the node; the model is in its bucket `models`, as llama."""
    with socket.socket() as probe:
        probe.bind((NODE_ADDRESS, 0))
        port = probe.getsockname()[1]
    program = Path(sys.prefix) / "s3-server/bin/moto_server"
    server = subprocess.Popen(
        [program, "-H", NODE_ADDRESS, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        put("", b"", port)
        for path in (models / "tiny").iterdir():
            put(f"/llama/{path.name}", path.read_bytes(), port)
        yield port
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
async def bucket(home: Any, s3_port: int) -> str:
    """Its name; the Secret `s3` has all that it takes to read there."""
    keys = ["aws_access_key_id = reader", "aws_secret_access_key = secret"]
    data = {"credentials": "\n".join(["[default]", *keys, f"endpoint_url = http://{NODE_ADDRESS}:{s3_port}"])}
    meta = {"name": "s3", "namespace": home.namespace}
    await home.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data}, SECRET)
    return "models"


def put(path: str, content: bytes, port: int) -> None:
    """Into the bucket; as soon as the server answers."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        connection = HTTPConnection(NODE_ADDRESS, port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("PUT", f"/models{path}", body=content)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return
        except ConnectionError:
            assert time.monotonic() < deadline, "no S3 server"
            time.sleep(0.1)
        finally:
            connection.close()


async def mismatch(home: Any, until: Any, uri: str) -> Object:
    """ModelReady, once it says that what is there is not what was asked for."""

    async def look() -> Object | None:
        status = (await home.get(RESOURCE, NAME)).get("status", {})
        told = [one for one in status.get("conditions", ()) if one["type"] == "ModelReady"]
        return told[0] if told and told[0]["reason"] == "DigestMismatch" and uri in told[0]["message"] else None

    found: Object = await until(look, f"{uri} is refused", SERVE_SECONDS)
    assert found["status"] == "False"
    return found


async def test_another_model_is_refused_and_the_right_one_served(
    serving: Any, operator: Any, pod_fragment: Object, models: Path, claim: str, bucket: str, until: Any
) -> None:
    """Claim and bucket have what nobody asked for; the web server has the same, and then it is asked for."""
    home, digest, wrong = serving.home, content_digest(models / "tiny"), "sha256:" + "0" * 64
    await serve_files(home, pod_fragment, models)
    model = {"uri": f"pvc://{claim}/tiny", "name": "tiny", "digest": wrong}
    spec = serving.spec(model=model, podTemplate=template(pod_fragment))
    await home.kube.create(home.manifest(NAME) | {"spec": spec}, RESOURCE)
    told = await mismatch(home, until, "/tiny")
    assert f"/tiny: its digest is {digest}, model.digest asks for {wrong}; nothing is served" in told["message"]
    await home.condition(NAME, "Ready", "False", digest)  # whoever looks there alone sees it, too

    secret = {"name": "s3", "key": "credentials"}
    await serving.edit(model=model | {"uri": f"s3://{bucket}/llama", "credentialsSecretRef": secret})
    told = await mismatch(home, until, f"s3://{bucket}/llama")
    assert f"its digest is {digest}" in told["message"]

    await serving.edit(model=model | {"credentialsSecretRef": None, "uri": "http://models/tiny", "digest": digest})
    await serving.is_ready()
    (answer,) = await serving.ask("acme", PROMPT)
    assert answer["text"]
