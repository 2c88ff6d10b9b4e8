"""The pool gives back what was stored, zeroes what it is told to, and says when there is no room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infer_engine.errors import ConfigError
from infer_engine.memory.kv_pool import KVPool, _cgroup_available, available_memory_bytes

CPU = torch.device("cpu")


@pytest.fixture
def pool() -> KVPool:
    return KVPool(num_layers=3, max_tokens=20, num_kv_heads=2, head_dim=4, dtype=torch.float32, device=CPU)


def test_shapes(pool: KVPool) -> None:
    assert len(pool.keys) == len(pool.values) == 3
    assert pool.keys[0].shape == pool.values[2].shape == (20, 2, 4)
    assert pool.bytes_per_token == 2 * 3 * 2 * 4 * 4
    assert pool.num_bytes == 20 * pool.bytes_per_token


def test_reads_what_was_written_in_the_order_of_the_slots(pool: KVPool) -> None:
    keys, values = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    pool.write(1, torch.tensor([7, 0, 19]), keys, values)
    got_keys, got_values = pool.read(1, torch.tensor([19, 7], dtype=torch.int32))
    assert torch.equal(got_keys, keys[[2, 0]])
    assert torch.equal(got_values, values[[2, 0]])
    assert torch.equal(pool.keys[1][0], keys[1])


def test_layers_are_apart(pool: KVPool) -> None:
    for layer in range(3):
        pool.write(layer, torch.tensor([5]), torch.full((1, 2, 4), float(layer)), torch.full((1, 2, 4), -float(layer)))
    assert [float(pool.read(layer, torch.tensor([5]))[0].max()) for layer in range(3)] == [0, 1, 2]
    assert [float(pool.read(layer, torch.tensor([5]))[1].min()) for layer in range(3)] == [0, -1, -2]


def test_zero_clears_all_layers_of_these_slots_only(pool: KVPool) -> None:
    slots = torch.arange(20)
    for layer in range(3):
        pool.write(layer, slots, torch.ones(20, 2, 4), torch.ones(20, 2, 4))
    pool.zero(torch.tensor([3, 4], dtype=torch.int32))
    for layer in range(3):
        keys, values = pool.read(layer, slots)
        assert float(keys.sum()) == float(values.sum()) == 18 * 8
        assert float(keys[[3, 4]].abs().sum()) == 0


def test_layout_tells_pools_apart_by_what_they_store(pool: KVPool) -> None:
    def layout(dtype: torch.dtype, max_tokens: int) -> str:
        return KVPool(3, max_tokens, 2, 4, dtype, CPU).layout

    assert layout(torch.float32, 99) == pool.layout
    assert layout(torch.bfloat16, 20) != pool.layout
    assert "float32" in pool.layout


def test_more_than_the_machine_has() -> None:
    available = available_memory_bytes()
    assert available is not None
    with pytest.raises(ConfigError, match=r"max_cache_tokens: got \d+; .* at most \d+ tokens fit") as caught:
        KVPool(32, available // 1000, 32, 128, torch.float32, CPU)
    assert "MiB are available" in str(caught.value)


def test_what_can_not_be_allocated_at_all() -> None:
    with pytest.raises(ConfigError, match="could not be allocated"):
        KVPool(2, 10, 1, 2**60, torch.float32, torch.device("meta"))


def test_a_container_has_less_than_the_machine(tmp_path: Path) -> None:
    assert _cgroup_available(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\nactive_file 50\n")
    assert _cgroup_available(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _cgroup_available(tmp_path) == 1000 - 700 + 100
