"""The tensors that hold every sequence's keys and values, one slot per token and layer.

In: K and V of the tokens of a step with the slots they go to. Out: K and V at any slots. Who owns which slot is the
allocator's business; the pool only stores. The same torch code serves CPU and CUDA.
"""

from __future__ import annotations

from pathlib import Path

import torch

from infer_engine.errors import ConfigError


class KVPool:
    """`keys[layer]` and `values[layer]` are [max_tokens, num_kv_heads, head_dim]; the first index is the slot.

    Memory is reserved at construction and, on CPU, taken from the system as slots are first written. A slot that was
    never written holds anything. Raises ConfigError naming `max_cache_tokens` where the memory can't be had.
    """

    def __init__(
        self,
        num_layers: int,
        max_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_layers = num_layers
        self.max_tokens = max_tokens
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.device = device
        self.bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize
        self._check_room()
        shape = (num_layers, max_tokens, num_kv_heads, head_dim)
        try:
            self._keys = torch.empty(shape, dtype=dtype, device=device)
            self._values = torch.empty(shape, dtype=dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise ConfigError(f"{self._describe_need()}, which could not be allocated on {device}") from error
        self.keys: tuple[torch.Tensor, ...] = self._keys.unbind(0)
        self.values: tuple[torch.Tensor, ...] = self._values.unbind(0)

    @property
    def layout(self) -> str:
        """What stored K/V look like; entries of two pools with the same layout can stand in for each other."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"slot-major/{dtype}/layers={self.num_layers}/kv_heads={self.num_kv_heads}/head_dim={self.head_dim}"

    @property
    def num_bytes(self) -> int:
        return self.bytes_per_token * self.max_tokens

    def write(self, layer_idx: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `keys` and `values`, each [n, num_kv_heads, head_dim], at `slots` (int64 [n], on the pool's device)."""
        self.keys[layer_idx].index_copy_(0, slots, keys)
        self.values[layer_idx].index_copy_(0, slots, values)

    def read(self, layer_idx: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of K and V, each [n, num_kv_heads, head_dim], in the order of `slots` (int32 or int64)."""
        return self.keys[layer_idx].index_select(0, slots), self.values[layer_idx].index_select(0, slots)

    def zero(self, slots: torch.Tensor) -> None:
        """Overwrite `slots` in all layers, so that their former owner's content is gone."""
        slots = slots.to(device=self.device, dtype=torch.int64)
        self._keys.index_fill_(1, slots, 0)
        self._values.index_fill_(1, slots, 0)

    def _check_room(self) -> None:
        """The system promises CPU memory that it doesn't have and kills the process on use, so ask beforehand."""
        available = available_memory_bytes() if self.device.type == "cpu" else None
        if available is not None and self.num_bytes > available:
            raise ConfigError(
                f"{self._describe_need()}, but {available / 2**20:.0f} MiB are available; "
                f"at most {available // self.bytes_per_token} tokens fit"
            )

    def _describe_need(self) -> str:
        return (
            f"max_cache_tokens: got {self.max_tokens}; the KV pool needs {self.num_bytes / 2**20:.0f} MiB "
            f"({self.bytes_per_token} bytes per token)"
        )


def available_memory_bytes() -> int | None:
    """What this process can still get: the machine's free memory or the container's (cgroup v2), whichever is less."""
    limits = [limit for limit in (_machine_available(), _cgroup_available(Path("/sys/fs/cgroup"))) if limit is not None]
    return min(limits, default=None)


def _machine_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024  # meminfo counts in KiB
    return None


def _cgroup_available(directory: Path) -> int | None:
    try:
        limit = (directory / "memory.max").read_text().strip()
        used = int((directory / "memory.current").read_text())
        cached = _inactive_file_bytes((directory / "memory.stat").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + cached)


def _inactive_file_bytes(stat: str) -> int:
    """Page cache that the kernel gives back before it refuses memory."""
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0
