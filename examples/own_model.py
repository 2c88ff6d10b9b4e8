"""A model of your own behind the engine: two methods, and it gets batching, chunked prefill and the prefix cache.

This one continues a text by induction: it looks up where the current token occurred last and says what followed there; a
token that it never saw is followed by the next higher one. Run it: python examples/own_model.py
"""

from __future__ import annotations

import torch

from infer_engine import EngineConfig, InferenceEngine, ModelInfo, SamplingParams, SequenceCache


class InductionModel:
    """A CacheAwareModel. Per token it keeps one key, the token before it, and one value, the token itself."""

    info = ModelInfo(
        name="induction",
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        vocab_size=256,
        max_model_len=4096,
        eos_token_ids=frozenset({0}),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )

    def prefill_with_cache(self, token_ids: torch.Tensor, start_position: int, cache: SequenceCache) -> torch.Tensor:
        """`start_position` tokens are in the cache already: from an earlier chunk, or from another request."""
        before = cache.read(0)[1].flatten()[-1:] if start_position else torch.tensor([-1.0])
        previous = torch.cat([before, token_ids[:-1].float()])
        cache.append(0, previous.view(-1, 1, 1), token_ids.float().view(-1, 1, 1))
        return self._next(int(token_ids[-1]), cache)

    def decode_with_cache(self, token_id: int, position: int, cache: SequenceCache) -> torch.Tensor:
        return self.prefill_with_cache(torch.tensor([token_id]), position, cache)

    def _next(self, current: int, cache: SequenceCache) -> torch.Tensor:
        keys, values = (tensor.flatten() for tensor in cache.read(0))
        followers = values[keys == current]
        chosen = int(followers[-1]) if len(followers) else (current + 1) % self.info.vocab_size
        logits = torch.zeros(self.info.vocab_size)
        logits[chosen] = 1.0
        return logits


def main() -> None:
    params = SamplingParams(max_tokens=24, temperature=0.0)
    sentence = "the cat sat on the mat; the c"
    with InferenceEngine(InductionModel(), EngineConfig(max_cache_tokens=4096)) as engine:
        for prompt in (sentence, sentence + "at s"):
            output = engine.generate(list(prompt.encode()), params)[0]
            print(
                f"{prompt!r} -> {bytes(output.token_ids).decode()!r}, {output.usage.cached_tokens} tokens from the cache"
            )


if __name__ == "__main__":
    main()
