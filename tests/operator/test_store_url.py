"""Who writes a store's URL decides where the operator connects to, not how long it waits, and reads no password in an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer_operator.store_url import checked


@pytest.mark.parametrize(
    "url", ["redis://h", "rediss://user:p%2Fw@store.team.svc:6380/2", "redis://:p@[fd00::1]:6379", "redis://h?db=3"]
)
def test_urls_of_stores(url: str) -> None:
    assert checked(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://h",
        "unix:///run/secret-socket",
        "redis:///1",
        "redis://user:secret/word@h:6379",
        "redis://[secret",
        "redis://h:0",
        "redis://h?socket_timeout=86400&secret=1",
        "redis://h?connection_class=secret",
        "redis://h?max_connections=secret",
        "rediss://h?ssl_ca_certs=/dev/zero",
        "rediss://h?ssl_ca_certs=/proc/self/status",
        "rediss://h?ssl_ca_certs=/nowhere/secret.pem",
    ],
)
def test_what_is_no_url_or_asks_for_more(url: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        checked(url)
    assert "secret" not in str(error.value)


def test_an_authority_of_one_s_own(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("certificates")
    url = f"rediss://h?ssl_ca_certs={file}"
    assert checked(url) == url
