"""What a document may say of a tenant's share."""

from __future__ import annotations

import msgspec
import pytest

from infer_server.contract.document import CacheShare


def test_a_maximum_below_the_minimum_is_refused_before_an_engine_sees_it() -> None:
    assert msgspec.json.decode(b'{"minTokens": 5, "maxTokens": 5}', type=CacheShare).max_tokens == 5
    with pytest.raises(msgspec.ValidationError, match=r"maxTokens: got 4; must be at least minTokens \(5\)"):
        msgspec.json.decode(b'{"minTokens": 5, "maxTokens": 4}', type=CacheShare)
