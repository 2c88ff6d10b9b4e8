"""The operator's command line: what it is given, and what it says of what it can't use."""

from __future__ import annotations

import pytest

from infer_operator.options import parse


def test_defaults() -> None:
    options = parse([])
    assert (options.namespace, options.watch_namespace, options.port) == ("default", "", 9401)
    assert (options.sweep_seconds, options.look_seconds) == (600, 30)
    assert options.context.operator_namespace is None  # not in a pod: the stores' policies let any address in


def test_what_is_given() -> None:
    given = ["--namespace=a", "--watch-namespace=b", "--image=x:1", "--image-pull-policy=Never", "--metrics-port=0"]
    options = parse([*given, "--look-seconds=1.5"])
    assert (options.namespace, options.watch_namespace, options.port, options.look_seconds) == ("a", "b", 0, 1.5)
    assert (options.context.image, options.context.image_pull_policy) == ("x:1", "Never")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--metrics-port=65536", "--metrics-port: got '65536'; must be an integer from 0 to 65535"),
        ("--look-seconds=0", "--look-seconds: got '0'; must be a number of seconds, at least 1"),
        ("--look-seconds=nan", "--look-seconds: got 'nan'; must be a number of seconds, at least 1"),
        ("--sweep-seconds=soon", "--sweep-seconds: got 'soon'; must be a number of seconds, at least 1"),
        ("--sweep-seconds=inf", "--sweep-seconds: got 'inf'; must be a number of seconds, at least 1"),
        ("--image-pull-policy=Sometimes", "invalid choice: 'Sometimes'"),
    ],
)
def test_what_cannot_be_used(given: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([given])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
