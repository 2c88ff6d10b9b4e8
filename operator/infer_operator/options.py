"""Command line of `inferengine operator` in, its options out; what is wrong ends the process with a line that says so."""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass

from infer_operator.builders import Context
from infer_operator.rounds import LOOK_SECONDS

SWEEP_SECONDS = 600.0
LEAST_SECONDS = 1.0
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
DESCRIPTION = "Run the operator of a cluster: in a pod, or outside with KUBECONFIG."


@dataclass(frozen=True, slots=True)
class Options:
    namespace: str
    """of the Lease; in a cluster also where the operator's pods run"""
    watch_namespace: str
    """empty: all"""
    port: int
    """of /metrics and /healthz; 0: none"""
    context: Context
    sweep_seconds: float = SWEEP_SECONDS
    look_seconds: float = LOOK_SECONDS


def parse(argv: list[str]) -> Options:
    inside = _own_namespace()
    parser = argparse.ArgumentParser(prog="inferengine operator", description=DESCRIPTION)
    parser.add_argument(
        "--namespace",
        default=inside or "default",
        help="where the Lease of the leader is kept (default: the pod's own)",
    )
    parser.add_argument("--watch-namespace", default="", help="look after this namespace only (default: all)")
    parser.add_argument(
        "--image",
        default="inferengine-engine:latest",
        help="of the pods, where a resource names none (default: %(default)s)",
    )
    parser.add_argument("--image-pull-policy", choices=("Always", "IfNotPresent", "Never"))
    parser.add_argument(
        "--metrics-port", type=_port, default=9401, help="of /metrics and /healthz; 0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--sweep-seconds",
        type=_seconds,
        default=SWEEP_SECONDS,
        help="between two full looks at everything (default: %(default)g)",
    )
    parser.add_argument(
        "--look-seconds",
        type=_seconds,
        default=LOOK_SECONDS,
        help="between two looks at one resource of which nothing was heard (default: %(default)g)",
    )
    args = parser.parse_args(argv)
    context = Context(image=args.image, image_pull_policy=args.image_pull_policy, operator_namespace=inside)
    return Options(
        args.namespace, args.watch_namespace, args.metrics_port, context, args.sweep_seconds, args.look_seconds
    )


def _own_namespace() -> str | None:
    with contextlib.suppress(OSError), open(NAMESPACE_FILE) as file:
        return file.read().strip()
    return None


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be an integer from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if LEAST_SECONDS <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"got {text!r}; must be a number of seconds, at least {LEAST_SECONDS:g}")
