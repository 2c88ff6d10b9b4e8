"""Read-only ways through a tree: from tokens down to the node where they end, and from a node up to its slots."""

from __future__ import annotations

from array import array

from infer_engine.cache.node import EVICTED, TOKEN_BYTES, Node, Root
from infer_engine.cache.prefix import Handle


def find_prefix(root: Root, data: bytes) -> tuple[Node, int]:
    """Follow `data` down: the node in which the longest known prefix ends, and that prefix's number of tokens."""
    node: Node = root
    offset = 0
    size = len(data)
    while offset < size:
        child = node.children.get(data[offset : offset + TOKEN_BYTES])
        if child is None:
            break
        node = child
        run = node.key
        if not data.startswith(run, offset):
            offset += _common_bytes(run, data, offset)
            break
        offset += len(run)
    return node, offset // TOKEN_BYTES


def _common_bytes(run: bytes, data: bytes, offset: int) -> int:
    """Length in bytes of the whole tokens in which `run` and data[offset:] agree; the first one does.

    Bisection over slices: a memcmp each, where a loop would cost a Python step per token.
    """
    low = 1
    high = min(len(run), len(data) - offset) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if data.startswith(run[low * TOKEN_BYTES : middle * TOKEN_BYTES], offset + low * TOKEN_BYTES):
            low = middle
        else:
            high = middle - 1
    return low * TOKEN_BYTES


def gather_slots(node: Node, num_tokens: int) -> array[int]:
    """A copy of the slots of the first `num_tokens` tokens on the path to `node`, in which they end."""
    last = node.slots[: num_tokens - node.start_idx]
    if node.start_idx == 0:
        return last
    runs = [last]
    while node.start_idx > 0:
        node = node.parent
        runs.append(node.slots)
    slots = array("i")
    for run in reversed(runs):
        slots += run
    return slots


def resolve(handle: Handle) -> Node | None:
    """The node in which a prefix of at least one token ends now, or None if it is gone."""
    node = handle._node
    while node.start_idx >= handle._num_tokens:  # splits since then have moved its end up
        node = node.parent
    return None if node.lock_ref == EVICTED or node.root.is_dropped else node
