"""The arithmetic of rates and restarts."""

from __future__ import annotations

from infer_server.front.backoff import Backoff
from infer_server.front.limits import TokenBucket


def test_a_bucket_allows_a_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.5), bucket.take(0.5)] == [True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_short_lives_are_followed_by_longer_and_longer_waits() -> None:
    backoff = Backoff(first=0.25, most=1.0, healthy=10.0)
    assert [backoff.after(0.1) for _ in range(5)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert backoff.failures == 5


def test_a_long_life_is_followed_by_none() -> None:
    backoff = Backoff(first=0.25, most=1.0, healthy=10.0)
    for _ in range(3):
        backoff.after(0.1)
    assert backoff.after(10.0) == 0.0
    assert backoff.failures == 0
    assert backoff.after(0.1) == 0.25
