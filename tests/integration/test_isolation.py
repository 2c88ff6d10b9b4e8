"""One identity from key to cache to metrics: what tenants share, which is nothing, and what each may use."""

import pytest

from infer_server.client import AuthenticationFailed, Rejected, Retryable

PROMPT = "The quick brown fox jumps over the lazy dog. " * 20


def test_tenants_never_share_a_cached_token_and_each_hits_its_own(pod):
    with pod.client("acme") as acme, pod.client("beta") as beta:
        cold = acme.generate(PROMPT, max_tokens=4, temperature=0)
        other = beta.generate(PROMPT, max_tokens=4, temperature=0)
        warm = acme.generate(PROMPT, max_tokens=4, temperature=0)
        salted = acme.generate(PROMPT, max_tokens=4, temperature=0, cache_salt="private")
    assert cold.usage.cached_tokens == other.usage.cached_tokens == salted.usage.cached_tokens == 0
    assert warm.usage.cached_tokens >= warm.usage.prompt_tokens - 1
    assert cold.token_ids == other.token_ids == warm.token_ids == salted.token_ids
    assert pod.metric("inferengine_cached_tokens_total", tenant="acme") >= warm.usage.cached_tokens
    assert pod.metric("inferengine_cached_tokens_total", tenant="beta") == 0
    pod.until(lambda: pod.metric("inferengine_cache_hit_tokens_total", tenant="acme") >= warm.usage.cached_tokens)
    assert pod.metric("inferengine_cache_hit_tokens_total", tenant="beta") == 0
    assert pod.metric("inferengine_kv_tokens", tenant="beta") >= other.usage.prompt_tokens


def test_a_tenants_key_opens_no_other_endpoint(pod):
    with pod.client("beta", key_of="acme") as stranger, pytest.raises(AuthenticationFailed):
        stranger.generate("hello", max_tokens=1)


def test_a_quota_refuses_and_the_metrics_show_it(pod):
    pod.set_tenant("small", quota={"tokens_per_minute": 60})
    pod.apply()
    with pod.client("small") as small:
        first = small.generate("hello", max_tokens=40, temperature=0, ignore_eos=True)
        with pytest.raises(Retryable) as caught:
            small.generate("hello", max_tokens=40)
        with pytest.raises(Rejected) as never:
            small.generate("hello", max_tokens=100)
    assert caught.value.code == "quota_tokens_per_minute"
    assert 0 < caught.value.retry_ms <= 60_000
    assert "60 tokens per minute" in caught.value.message
    assert never.value.code == "quota_too_large"
    assert pod.usage("small").day.used == first.usage.prompt_tokens + 40
    assert pod.metric("inferengine_quota_decisions_total", tenant="small", decision="tokens_per_minute") == 1
    assert pod.metric("inferengine_requests_total", tenant="small", outcome="quota_tokens_per_minute") == 1
    assert pod.metric("inferengine_generated_tokens_total", tenant="small") == 40
    pod.remove_tenant("small")
    pod.apply()
    pod.until(lambda: len([name for name in pod.processes().values() if name == "front"]) == 2)
