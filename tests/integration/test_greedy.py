"""What comes out of the whole stack is what the model says: token for token as transformers generates it, in float32."""

import asyncio

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

OUTPUT = 8
SHARED = (
    "You are a helpful assistant who knows the capitals of all countries in the world and answers in one word. " * 2
)


@pytest.fixture(scope="module")
def generate(smollm_dir):
    model = AutoModelForCausalLM.from_pretrained(smollm_dir, dtype=torch.float32)
    model.eval()

    def generate(ids: list[int]) -> list[int]:
        with torch.inference_mode():
            output = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
                do_sample=False,
                max_new_tokens=OUTPUT,
                pad_token_id=2,
            )
        return output[0, len(ids) :].tolist()

    return generate


@pytest.fixture(scope="module")
def tokenizer(smollm_dir):
    return AutoTokenizer.from_pretrained(smollm_dir)


def test_cold_partly_and_fully_cached_prompts(smollm_pod, generate, tokenizer):
    first, second = SHARED + "France?", SHARED + "Japan?"
    with smollm_pod.client("acme") as acme:
        for prompt, least_cached in ((first, 0), (second, 30), (first, 40)):
            answer = acme.generate(prompt, max_tokens=OUTPUT, temperature=0)
            ids = tokenizer(prompt)["input_ids"]
            assert answer.usage.prompt_tokens == len(ids)
            assert answer.usage.cached_tokens >= least_cached
            assert answer.token_ids == generate(ids)
            assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_a_conversation_goes_through_the_models_own_template(smollm_pod, generate, tokenizer):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    with smollm_pod.client("acme") as acme:
        answer = acme.generate(messages=messages, max_tokens=OUTPUT, temperature=0)
    assert answer.token_ids == generate(ids)
    assert "Paris" in answer.text


def test_sixteen_requests_at_once_of_two_tenants(smollm_pod, generate, tokenizer):
    prompts = [SHARED * (n % 2) + f"Write the number {n} in words:" for n in range(8)]

    async def ask():
        async with smollm_pod.async_client("acme") as acme, smollm_pod.async_client("beta") as beta:
            calls = [c.generate(p, max_tokens=OUTPUT, temperature=0) for p in prompts for c in (acme, beta)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    for index, prompt in enumerate(prompts):
        expected = generate(tokenizer(prompt)["input_ids"])
        assert answers[2 * index].token_ids == expected, prompt
        assert answers[2 * index + 1].token_ids == expected, prompt
