"""Where a pod finds its model: a spec in, the parts of a pod out that bring the model there. Pure.

What is fetched, or must have a digest, goes through an init container: `inferengine fetch` brings it into the cache or looks at
what is mounted, and refuses it or makes LINK lead to it. The server starts from there, without network and credentials. A model
in the image, on the node or in a claim, without a digest to check, is opened where it is.
"""

from __future__ import annotations

import re
from typing import Any

from infer_operator.builders.podspec import container_security, secret_volume
from infer_operator.spec import DeploymentSpec, ModelSpec

FETCH = "fetch"
CACHE_DIRECTORY = "/var/cache/inferengine"
CLAIM_DIRECTORY = "/var/lib/inferengine/claim"
LINK = "/tmp/inferengine-model"
"""in the pod's own volume: it stays through restarts of the server's container, and no other pod moves it"""
CREDENTIALS_DIRECTORY = "/etc/inferengine-model"
CREDENTIALS_FILE = "credentials"
FETCHED = ("hf", "s3", "https", "http")
CLAIM_VOLUME, CREDENTIALS_VOLUME = "model-claim", "model-credentials"
_TOKENS = {"hf": "HF_TOKEN", "https": "INFERENGINE_HTTP_TOKEN", "http": "INFERENGINE_HTTP_TOKEN"}


def scheme(model: ModelSpec) -> str:
    """Empty for a path."""
    name, separator, _ = model.uri.partition("://")
    return name if separator else ""


def is_remote(model: ModelSpec) -> bool:
    return scheme(model) in FETCHED


def goes_through_fetch(model: ModelSpec) -> bool:
    return is_remote(model) or model.digest is not None


def place(model: ModelSpec) -> str:
    """What the server opens."""
    return LINK if goes_through_fetch(model) else _source(model)


def _source(model: ModelSpec) -> str:
    if scheme(model) == "pvc":
        path = model.uri.removeprefix("pvc://").partition("/")[2].strip("/")
        return f"{CLAIM_DIRECTORY}/{path}" if path else CLAIM_DIRECTORY
    return model.uri if model.revision is None else f"{model.uri}@{model.revision}"


def fetch_container(spec: DeploymentSpec, image: dict[str, Any], mounts: list[dict[str, Any]]) -> dict[str, Any]:
    """Before the server, so that a pod whose model is not there, or another, says so by its state. What is whole in the
    cache isn't fetched again."""
    model = spec.model
    expect = [] if model.digest is None else ["--expect", model.digest]
    credentials = [{"name": CREDENTIALS_VOLUME, "mountPath": CREDENTIALS_DIRECTORY, "readOnly": True}]
    return image | {
        "name": FETCH,
        "command": ["inferengine", "fetch"],
        # A kubelet puts variables in for $(NAME), the token's among them, and makes one $ of two
        "args": ["--link", LINK, *expect, _source(model).replace("$", "$$")],
        "env": [
            {"name": "XDG_CACHE_HOME", "value": CACHE_DIRECTORY},
            {"name": "HOME", "value": "/tmp"},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            *_credentials_env(model),
        ],
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # its last line says what is wrong
        "volumeMounts": [*mounts, *claim_mounts(model), *(credentials if _credentials_volume(model) else [])],
    }


def _credentials_env(model: ModelSpec) -> list[dict[str, Any]]:
    reference = model.credentials_secret_ref
    if reference is None:
        return []
    if scheme(model) == "s3":
        file = f"{CREDENTIALS_DIRECTORY}/{CREDENTIALS_FILE}"
        return [{"name": name, "value": file} for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")]
    key = {"secretKeyRef": {"name": reference.name, "key": reference.key}}
    return [{"name": _TOKENS[scheme(model)], "valueFrom": key}]


def _credentials_volume(model: ModelSpec) -> list[dict[str, Any]]:
    reference = model.credentials_secret_ref
    if reference is None or scheme(model) != "s3":
        return []
    return [secret_volume(CREDENTIALS_VOLUME, reference.name, {reference.key: CREDENTIALS_FILE})]


def claim_mounts(model: ModelSpec) -> list[dict[str, Any]]:
    if scheme(model) != "pvc":
        return []
    return [{"name": CLAIM_VOLUME, "mountPath": CLAIM_DIRECTORY, "readOnly": True}]


def volumes(spec: DeploymentSpec) -> list[dict[str, Any]]:
    """Beside the cache's own."""
    model = spec.model
    if scheme(model) != "pvc":
        return _credentials_volume(model)
    claim: dict[str, Any] = {"claimName": model.uri.removeprefix("pvc://").partition("/")[0]}
    if claim["claimName"] != spec.model_cache.claim_name:  # a node attaches a volume once, for reading or for writing
        claim["readOnly"] = True
    return [{"name": CLAIM_VOLUME, "persistentVolumeClaim": claim}]


def ports(model: ModelSpec) -> list[int]:
    """To which the pods connect for the model. What a variable leads elsewhere needs a rule in networkPolicy.egress."""
    if scheme(model) in ("http", "https"):
        default = 443 if scheme(model) == "https" else 80
        named = re.match(r"https?://[^/?#]*:([0-9]+)/", model.uri)
        return sorted({int(named[1]) if named else default, default})
    return [443] if is_remote(model) else []
