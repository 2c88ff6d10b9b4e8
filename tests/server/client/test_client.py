from collections.abc import Callable
from pathlib import Path

from infer_server.client import Client

from ..front.conftest import Pod


def test_generate(pod: Pod, credentials: Callable[..., Path]) -> None:
    (acme,) = pod.add("acme")
    with Client.from_credentials(credentials(acme)) as client:
        out = client.generate("count 3")
        assert out.text == "0 1 2 "
        stream = client.stream("count 100")
        print([d.text for d in stream][-1], stream.usage)
