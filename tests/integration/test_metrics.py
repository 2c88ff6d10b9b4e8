"""What Prometheus shows of a tenant is what its clients were told."""

GREEDY = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
PER_REQUEST = ("time_to_first_token_seconds_count", "queue_seconds_count")


def test_each_figure_of_a_tenant(pod):
    pod.set_tenant("metered", quota={"requests_per_minute": 100})
    pod.apply()

    def shown(name, **labels):
        return pod.metric(f"inferengine_{name}", tenant="metered", namespace="local", deployment="shared", **labels)

    prompt = "A tenant that watches its figures closely. " * 5
    with pod.client("metered") as client:
        first, second = (client.generate(prompt, **GREEDY).usage for _ in range(2))
        with client.stream(prompt, **GREEDY | {"max_tokens": 4000}) as left_early:
            next(left_early)
        pod.until(lambda: shown("requests_total", outcome="cancelled") == 1)
    assert shown("requests_total", outcome="length") == 2
    assert shown("active_requests") == 0
    assert second.cached_tokens == second.prompt_tokens - 1
    assert shown("prompt_tokens_total") == 3 * first.prompt_tokens
    assert shown("cached_tokens_total") == 2 * second.cached_tokens
    assert shown("generated_tokens_total") > 2 * 5
    assert shown("quota_decisions_total", decision="allowed") == 3
    for name in PER_REQUEST:
        assert shown(name) == 3
    assert shown("inter_token_seconds_count") == shown("generated_tokens_total") - 3
    assert shown("inter_token_seconds_sum") > 0
    # The engine reports once a second
    pod.until(lambda: shown("cache_lookup_tokens_total") == 3 * first.prompt_tokens)
    assert shown("cache_hit_tokens_total") == 2 * second.cached_tokens
    assert shown("kv_tokens") >= first.prompt_tokens + 4
    assert shown("evicted_tokens_total", cause="pressure") == 0
    pod.remove_tenant("metered")
    pod.apply()
    pod.until(lambda: len([name for name in pod.processes().values() if name == "front"]) == 2)
