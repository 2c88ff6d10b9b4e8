"""What the operator writes for a pod is what the server and the engine read: names, types, defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from infer_engine import commands
from infer_engine.config import EngineConfig
from infer_operator import conditions, keys, spec
from infer_operator.builders import configmap, model
from infer_operator.builders.pod import engine_config, pod_config
from infer_operator.state import Key, Resource
from infer_server import config as server_config

QUICKSTART = Path(__file__).parents[2] / "manifests" / "examples" / "quickstart.yaml"

FULL = b"""
apiVersion: inferengine.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: full}
spec:
  model: {uri: "hf://org/name", name: m, revision: abc, dtype: float32, maxModelLen: 512}
  engine: {device: cpu, maxBatchSize: 2, maxQueueSize: 3, scheduleIntervalMs: 2.5, maxConcurrentRequests: 4,
           maxCacheTokens: 999, numLayers: 5, kvDim: 6, chunkedPrefillTokens: 70, defaultMaxTokens: 8}
  tenants: [{name: acme}]
"""


def write(resource: Resource) -> bytes:
    return pod_config(
        Key("local", "full"),
        resource,
        store_url="unix:///tmp/store.sock",
        server_key_file="/keys/server.key",
        namespace_key_file="/keys/namespace.key",
        host="127.0.0.1",
        http_port=9400,
    )


def test_the_server_reads_what_the_operator_writes(tmp_path: Path) -> None:
    file = tmp_path / "pod.json"
    file.write_bytes(write(Resource(uid=keys.uid(), generation=1, deployment=spec.parse(FULL))))
    config = server_config.load(file)
    assert (config.namespace, config.deployment, config.model) == ("local", "full", "hf://org/name@abc")
    assert (config.model_name, config.store_url, config.http_port) == ("m", "unix:///tmp/store.sock", 9400)
    assert EngineConfig.from_mapping(config.engine) == EngineConfig(
        max_batch_size=2,
        max_queue_size=3,
        schedule_interval_ms=2.5,
        max_concurrent_requests=4,
        max_cache_tokens=999,
        num_layers=5,
        kv_dim=6,
        chunked_prefill_tokens=70,
        default_max_tokens=8,
        max_model_len=512,
        device="cpu",
        dtype="float32",
    )


def test_a_digest_is_the_server_s_to_look_at_where_nothing_else_does(tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    text = FULL.replace(b"revision: abc", b"digest: '" + digest.encode() + b"'")
    text = text.replace(b"{name: full}", b"{name: full, namespace: team}")
    resource = Resource(uid=keys.uid(), generation=1, deployment=spec.parse(text))
    file = tmp_path / "pod.json"
    file.write_bytes(write(resource))
    config = server_config.load(file)
    assert (config.model, config.model_digest) == ("hf://org/name", digest)
    (tmp_path / "url").write_text("redis://store")
    file.write_text(configmap.pod_json(resource).replace(configmap.STORE_URL_FILE, str(tmp_path / "url")))
    config = server_config.load(file)
    assert (config.model, config.model_digest) == (model.LINK, None)


def test_the_operator_knows_what_fetch_ends_with() -> None:
    assert conditions.EXIT_MISMATCH == commands.EXIT_MISMATCH


def test_a_url_with_a_password_is_read_from_its_own_file(tmp_path: Path) -> None:
    deployment = spec.convert(
        {
            "apiVersion": "inferengine.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": "d", "namespace": "team"},
            "spec": {"model": {"uri": "/m", "name": "m"}, "tenants": [{"name": "acme"}], "drain": {"seconds": 7}},
        }
    )
    written = configmap.pod_json(Resource(uid="u", generation=1, deployment=deployment))
    url = tmp_path / "url"
    file = tmp_path / "pod.json"
    file.write_text(written.replace(configmap.STORE_URL_FILE, str(url)))
    with pytest.raises(FileNotFoundError):
        server_config.load(file)
    url.write_text("redis://user:password@store:6379\n")
    config = server_config.load(file)
    assert (config.store_url, config.namespace, config.drain_seconds) == ("redis://user:password@store:6379", "team", 7)
    assert (config.listen_host, config.http_host, config.http_port) == ("0.0.0.0", "0.0.0.0", 9400)


@pytest.mark.parametrize("given", ["", '"storeUrl": "redis://x", "storeUrlFile": "/y",'])
def test_a_pod_has_one_store(tmp_path: Path, given: str) -> None:
    file = tmp_path / "pod.json"
    file.write_text(
        f'{{{given} "namespace": "n", "deployment": "d", "model": "/m", "modelName": "m", '
        '"serverKeyFile": "a", "namespaceKeyFile": "b"}'
    )
    with pytest.raises(msgspec.ValidationError, match="give one of"):
        server_config.load(file)


def test_a_resource_without_engine_settings_has_the_engine_s_own_defaults() -> None:
    minimal = FULL.replace(b", dtype: float32, maxModelLen: 512", b"").split(b"  engine:")[0]
    deployment = spec.parse(minimal + b"  tenants: [{name: acme}]")
    fields = engine_config(Resource(uid="u", generation=1, deployment=deployment))
    assert EngineConfig.from_mapping(fields) == EngineConfig()


def test_every_engine_setting_of_the_resource_is_one_of_the_engine() -> None:
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    assert set(spec.EngineSpec.__struct_fields__) - {"image"} <= known


def test_the_quickstart_is_accepted_by_the_engine() -> None:
    deployment = spec.load(QUICKSTART)
    EngineConfig.from_mapping(engine_config(Resource(uid="u", generation=1, deployment=deployment)))
    assert [tenant.name for tenant in deployment.spec.tenants] == ["acme", "globex"]
