"""Random operations of an engine on cache and allocator, against an oracle that knows tokens only: no nodes, no ring.

After every step: each slot has one owner, lock counts and the whole order of eviction are the oracle's, and the cache's own
invariants hold. 100 runs of up to 150 operations, some 10,000 in all; INFERENGINE_TEST_PROFILE=soak makes it 2,000 runs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from infer_engine.cache import Handle, InsertResult, NamespaceUsage, RadixCache, RadixKey
from infer_engine.config import Share
from infer_engine.errors import StaleHandle
from infer_engine.memory.allocator import OutOfSlotsError, SlotAllocator

NUM_SLOTS = 40
NAMESPACES = ("", "tenant-1", "tenant-2")
ONE_GROUP = dict.fromkeys(NAMESPACES, "")
TWO_GROUPS = {"": "a", "tenant-1": "a", "tenant-2": "b"}

namespaces = st.sampled_from(NAMESPACES)
picks = st.integers(0, NUM_SLOTS)
shares = st.builds(Share, min_tokens=st.sampled_from([0, 0, 5, 15]), weight=st.sampled_from([1.0, 2.0, 0.5]))
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=10)


@dataclass(eq=False)
class Token:
    """A cached token: one node of a trie with one token per node."""

    slot: int
    position: int
    last_use: int
    namespace: str
    num_locks: int = 0
    is_gone: bool = False


class Oracle:
    """What the cache must do, with a dictionary from whole prefixes to tokens and a clock."""

    def __init__(self, group_of: dict[str, str], shares: dict[str, Share]) -> None:
        self.group_of = group_of
        self.shares = shares
        self.tokens: dict[tuple[str, tuple[int, ...]], Token] = {}
        self.dropped: list[Token] = []  # gone, and still locked
        self.clock = 0
        self.num_evicted = 0
        self.num_drops = dict.fromkeys(NAMESPACES, 0)

    def match(self, namespace: str, tokens: list[int]) -> list[Token]:
        path: list[Token] = []
        while len(path) < len(tokens):
            token = self.tokens.get((namespace, tuple(tokens[: len(path) + 1])))
            if token is None:
                break
            path.append(token)
        return path

    def insert(self, namespace: str, tokens: list[int], slots: list[int]) -> int:
        num_existing = len(self.match(namespace, tokens))
        for idx in range(num_existing, len(tokens)):
            self.tokens[namespace, tuple(tokens[: idx + 1])] = Token(slots[idx], idx, 0, namespace)
        self.use(self.match(namespace, tokens))
        return num_existing

    def use(self, path: list[Token]) -> None:
        self.clock += 1
        for token in path:
            if token.num_locks == 0:
                token.last_use = self.clock

    def lock(self, path: list[Token]) -> None:
        for token in path:
            token.num_locks += 1

    def unlock(self, path: list[Token]) -> list[int]:
        for token in path:
            token.num_locks -= 1
        self.use(path)
        freed = [token for token in path if token.is_gone and token.num_locks == 0]
        self.dropped = [token for token in self.dropped if token not in freed]
        return [token.slot for token in freed]

    def eviction_order(self, group: str) -> list[Token]:
        unlocked = [token for token in self.members(self.tokens.values(), group) if token.num_locks == 0]
        return sorted(unlocked, key=lambda token: (token.last_use, -token.position))

    def members(self, tokens: Iterable[Token], group: str) -> list[Token]:
        return [token for token in tokens if self.group_of[token.namespace] == group]

    def evict(self, num_tokens: int, asker: str, num_running: dict[str, int]) -> list[int]:
        """The pool is smaller than one turn: each group gives all that it may before it is another's turn."""
        freed: list[int] = []
        payers: dict[str, tuple[float, int]] = {}
        for group, share in self.shares.items():
            held = len(self.members((*self.tokens.values(), *self.dropped), group)) + num_running[group]
            num_evictable = len(self.eviction_order(group))
            num_payable = num_evictable if group == asker else min(num_evictable, max(0, held - share.min_tokens))
            payers[group] = ((held - share.min_tokens) / share.weight, num_payable)
        for group, (_, num_payable) in sorted(payers.items(), key=lambda item: -item[1][0]):
            freed += self.evict_from(group, min(num_payable, num_tokens - len(freed)))
        return freed

    def evict_from(self, group: str, num_tokens: int) -> list[int]:
        victims = self.eviction_order(group)[: max(num_tokens, 0)]
        for token in victims:
            token.is_gone = True
        self.num_evicted += len(victims)
        self.tokens = {prefix: token for prefix, token in self.tokens.items() if not token.is_gone}
        return [token.slot for token in victims]

    def drop(self, namespace: str) -> list[int]:
        self.num_drops[namespace] += 1
        gone = [token for (name, _), token in self.tokens.items() if name == namespace]
        self.tokens = {prefix: token for prefix, token in self.tokens.items() if prefix[0] != namespace}
        for token in gone:
            token.is_gone = True
        self.dropped += [token for token in gone if token.num_locks > 0]
        return [token.slot for token in gone if token.num_locks == 0]


@dataclass(eq=False)
class Held:
    """A handle and the tokens that it stands for."""

    handle: Handle
    path: list[Token]
    num_drops: int
    num_locks: int = 0

    def is_live(self, oracle: Oracle) -> bool:
        was_dropped = self.num_locks > 0 and oracle.num_drops[self.handle.namespace] != self.num_drops
        return not was_dropped and not any(token.is_gone for token in self.path)


@dataclass(eq=False)
class Request:
    """Slots [0, held.handle.num_tokens) are the tree's, the others its own."""

    namespace: str
    tokens: list[int]
    slots: list[int]
    held: Held
    is_done: bool = False

    @property
    def own(self) -> list[int]:
        return self.slots[self.held.handle.num_tokens :]


class CacheMachine(RuleBasedStateMachine):
    requests = Bundle("requests")
    looks = Bundle("looks")

    def __init__(self) -> None:
        super().__init__()
        self.cache = RadixCache(policy="lru")
        self.allocator = SlotAllocator(NUM_SLOTS)
        self.running: list[Request] = []
        self.locked: list[Held] = []

    @initialize(group_of=st.sampled_from([ONE_GROUP, TWO_GROUPS]), shares=st.lists(shares, min_size=2, max_size=2))
    def set_shares(self, group_of: dict[str, str], shares: list[Share]) -> None:
        groups = sorted(set(group_of.values()))
        self.oracle = Oracle(group_of, dict(zip(groups, shares, strict=False)))
        for group, share in self.oracle.shares.items():
            self.cache.shares[group].share = share

    # What an engine does.

    @rule(target=requests, namespace=namespaces, tokens=prompts, lock_at_once=st.booleans())
    def admit(self, namespace: str, tokens: list[int], lock_at_once: bool) -> Request:
        return self._admit(namespace, tokens, lock_at_once)

    @rule(namespace=namespaces, tokens=prompts, is_first_inserted_first=st.booleans())
    def same_prompt_twice_in_one_batch(self, namespace: str, tokens: list[int], is_first_inserted_first: bool) -> None:
        pair = [self._admit(namespace, tokens, True), self._admit(namespace, tokens, True)]
        for request in pair if is_first_inserted_first else reversed(pair):
            if not request.is_done:
                self._share(request, unlock_first=True)
        if not any(request.is_done for request in pair):
            assert pair[0].slots == pair[1].slots
        for request in pair:
            if not request.is_done:
                self._leave(request)

    @rule(request=requests, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def decode(self, request: Request, tokens: list[int]) -> None:
        slots = None if request.is_done else self._obtain(len(tokens), request.namespace)
        if slots is not None:
            request.tokens = request.tokens + tokens
            request.slots = request.slots + slots

    @rule(request=requests, unlock_first=st.booleans())
    def share(self, request: Request, unlock_first: bool) -> None:
        if not request.is_done:
            self._share(request, unlock_first)

    @rule(request=consumes(requests), unlock_first=st.booleans())
    def finish(self, request: Request, unlock_first: bool) -> None:
        if not request.is_done:
            self._share(request, unlock_first)
            self._leave(request)

    @rule(request=consumes(requests))
    def abort(self, request: Request) -> None:
        if not request.is_done:
            self._leave(request)

    @rule(namespace=namespaces, tokens=prompts)
    def insert_without_a_lock(self, namespace: str, tokens: list[int]) -> None:
        slots = self._obtain(len(tokens), namespace)
        if slots is not None:
            num_existing = self._insert(namespace, tokens, slots).num_existing
            self.allocator.free(slots[:num_existing])

    @rule(pick=picks, tokens=prompts)
    def branch_off_something_cached(self, pick: int, tokens: list[int]) -> None:
        namespace, prefix = self._pick(pick)
        self.insert_without_a_lock(namespace, [*prefix, *tokens])

    @rule(num_tokens=st.sampled_from([-1, 0, 1, 1, 2, 3, 5, NUM_SLOTS + 1]), namespace=namespaces)
    def evict(self, num_tokens: int, namespace: str) -> None:
        self._evict(num_tokens, namespace)

    @rule(num_tokens=st.integers(1, 5), namespace=namespaces)
    def evict_from_one_group(self, num_tokens: int, namespace: str) -> None:
        group = self.oracle.group_of[namespace]
        freed = self.cache.evict_from(self.cache.shares[group], num_tokens, "quota")
        assert sorted(freed) == sorted(self.oracle.evict_from(group, num_tokens))
        self.allocator.free(freed)

    @rule(namespace=st.sampled_from([*NAMESPACES, *[None] * 6]))
    def drop_namespace(self, namespace: str | None) -> None:
        if namespace is None:
            return  # most of the time: a tree needs time to grow
        freed = self.cache.drop_namespace(namespace)
        assert sorted(freed) == sorted(self.oracle.drop(namespace))
        self.allocator.free(freed)

    # What a handle goes through that is kept for longer.

    @rule(target=looks, namespace=namespaces, tokens=prompts)
    def look(self, namespace: str, tokens: list[int]) -> Held:
        before = self._state()
        key = self._key(namespace, tokens)
        match = self.cache.match_prefix(key)
        assert self.cache.num_matched(key) == match.num_tokens
        assert self._state() == before
        path = self.oracle.match(namespace, tokens)
        assert list(match.slots) == [token.slot for token in path]
        assert match.num_tokens == match.handle.num_tokens == len(path)
        return Held(match.handle, path, self.oracle.num_drops[namespace])

    @rule(target=looks, pick=picks)
    def look_at_something_cached(self, pick: int) -> Held:
        namespace, prefix = self._pick(pick)
        return self.look(namespace, list(prefix))

    @rule(held=looks)
    def lock(self, held: Held) -> None:
        if held.is_live(self.oracle):
            self._lock(held)
        else:
            with pytest.raises(StaleHandle):
                self.cache.lock(held.handle)

    @rule(held=looks)
    def unlock(self, held: Held) -> None:
        if held.num_locks > 0:
            self._unlock(held)
        else:
            with pytest.raises(AssertionError, match="not locked"):
                self.cache.unlock(held.handle)

    @rule(held=looks)
    def read_slots(self, held: Held) -> None:
        if held.is_live(self.oracle) or not held.path:
            assert list(self.cache.slots(held.handle)) == [token.slot for token in held.path]
        else:
            with pytest.raises(StaleHandle):
                self.cache.slots(held.handle)

    @rule(held=looks)
    def ask_liveness(self, held: Held) -> None:
        assert self.cache.is_live(held.handle) == held.is_live(self.oracle)

    # Checks after every step.

    @invariant()
    def own_invariants_hold(self) -> None:
        self.cache.check_integrity()
        self.allocator.check_integrity()

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        tree = [token.slot for token in (*self.oracle.tokens.values(), *self.oracle.dropped)]
        owned = tree + [slot for request in self.running for slot in request.own]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.allocator.num_free == NUM_SLOTS
        assert self.cache.num_tokens == len(tree)

    @invariant()
    def tree_has_the_oracles_slots_and_locks(self) -> None:
        locks: dict[int, int] = {}
        pending = [*self.cache._roots.values(), *self.cache._dropped_roots]
        while pending:
            node = pending.pop()
            pending += node.children.values()
            locks |= dict.fromkeys(node.slots, node.lock_ref)
        expected = (*self.oracle.tokens.values(), *self.oracle.dropped)
        assert locks == {token.slot: token.num_locks for token in expected}

    @invariant()
    def order_of_eviction_is_the_oracles(self) -> None:
        num_unlocked = 0
        for group in self.oracle.shares:
            order = [slot for node in self.cache.shares[group].order.nodes() for slot in reversed(node.slots)]
            assert order == [token.slot for token in self.oracle.eviction_order(group)]
            num_unlocked += len(order)
        assert self.cache.num_evictable_tokens == num_unlocked

    @invariant()
    def usage_is_the_oracles(self) -> None:
        usage = self.cache.usage()
        assert usage.keys() <= set(NAMESPACES)
        tokens = (*self.oracle.tokens.values(), *self.oracle.dropped)
        for namespace in NAMESPACES:
            held = [token for token in tokens if token.namespace == namespace]
            assert usage.get(namespace, NamespaceUsage(0, 0)) == (
                len(held),
                sum(token.num_locks > 0 for token in held),
            )
        groups = self.cache.shares.groups()
        assert sum(group.num_evicted_tokens for group in groups) == self.oracle.num_evicted
        assert all(group.num_cross_evicted_tokens == 0 for group in groups)

    def teardown(self) -> None:
        """When every request has ended and everything is evicted, nothing is left behind."""
        for request in list(self.running):
            self._leave(request)
        for held in list(self.locked):
            while held.num_locks:
                self._unlock(held)
        for namespace in NAMESPACES:
            self._evict(NUM_SLOTS, namespace)
        self.own_invariants_hold()
        assert self.allocator.num_free == NUM_SLOTS
        assert (self.cache.num_tokens, self.cache.num_nodes) == (0, 0)
        assert not self.cache._roots
        assert not self.cache._dropped_roots

    def _key(self, namespace: str, tokens: list[int]) -> RadixKey:
        return RadixKey.with_namespace(tokens, namespace, self.oracle.group_of[namespace])

    def _state(self) -> tuple[object, ...]:
        orders = [[id(node) for node in group.order.nodes()] for group in self.cache.shares.groups()]
        return orders, self.cache.num_nodes, self.cache.usage()

    def _count_running(self) -> dict[str, int]:
        """As whoever runs the requests does."""
        num_running = dict.fromkeys(self.oracle.shares, 0)
        for request in self.running:
            num_running[self.oracle.group_of[request.namespace]] += len(request.own)
        for group, number in num_running.items():
            self.cache.shares[group].num_running_tokens = number
        return num_running

    # The engine's side of each verb; all that is freed goes back to the allocator, which knows a double free.

    def _pick(self, pick: int) -> tuple[str, tuple[int, ...]]:
        prefixes = [*self.oracle.tokens, ("", ())]
        return prefixes[pick % len(prefixes)]

    def _admit(self, namespace: str, tokens: list[int], lock_at_once: bool) -> Request:
        match = self.cache.match_prefix(self._key(namespace, tokens), lock=lock_at_once)
        path = self.oracle.match(namespace, tokens)
        assert list(match.slots) == [token.slot for token in path]
        held = Held(match.handle, path, self.oracle.num_drops[namespace])
        if lock_at_once:
            self._note_lock(held)
        else:
            self._lock(held)
        own = self._obtain(len(tokens) - match.num_tokens, namespace)
        if own is None:
            self._unlock(held)
            return Request(namespace, tokens, [], held, is_done=True)
        request = Request(namespace, tokens, [*match.slots, *own], held)
        self.running.append(request)
        return request

    def _obtain(self, n: int, namespace: str) -> list[int] | None:
        short = n - self.allocator.num_free
        if short > 0:
            self._evict(short, namespace)
        if n > self.allocator.num_free:
            with pytest.raises(OutOfSlotsError):
                self.allocator.allocate(n)
            return None
        return list(self.allocator.allocate(n))

    def _share(self, request: Request, unlock_first: bool) -> None:
        """Hand the request's tokens to the tree and hold them there; not those of a dropped namespace."""
        held = request.held
        assert self.cache.is_live(held.handle) == held.is_live(self.oracle)
        if not held.is_live(self.oracle):
            return
        own = request.own
        if unlock_first:
            self._unlock(held)
        result = self._insert(request.namespace, request.tokens, request.slots)
        assert result.num_existing >= held.handle.num_tokens
        path = self.oracle.match(request.namespace, request.tokens)
        request.held = Held(result.handle, path, self.oracle.num_drops[request.namespace])
        self._lock(request.held)
        if not unlock_first:
            self._unlock(held)
        request.slots = list(self.cache.slots(result.handle))
        assert request.slots == [token.slot for token in path]
        self.allocator.free(own[: result.num_existing - held.handle.num_tokens])

    def _insert(self, namespace: str, tokens: list[int], slots: list[int]) -> InsertResult:
        result = self.cache.insert(self._key(namespace, tokens), array("i", slots))
        assert result.num_existing == self.oracle.insert(namespace, tokens, slots)
        assert result.handle.num_tokens == len(tokens)
        return result

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        request.is_done = True
        self.allocator.free(request.own)
        self._unlock(request.held)

    def _evict(self, num_tokens: int, namespace: str) -> None:
        asker = self.oracle.group_of[namespace]
        num_running = self._count_running()
        expected = self.oracle.evict(num_tokens, asker, num_running)
        num_payable = self.cache.shares.num_payable(asker)
        freed = self.cache.evict(num_tokens, asker)
        assert sorted(freed) == sorted(expected)
        assert len(freed) == max(0, min(num_tokens, num_payable))
        self.allocator.free(freed)

    def _lock(self, held: Held) -> None:
        self.cache.lock(held.handle)
        self._note_lock(held)

    def _note_lock(self, held: Held) -> None:
        self.oracle.lock(held.path)
        if held.num_locks == 0:
            held.num_drops = self.oracle.num_drops[held.handle.namespace]
            self.locked.append(held)
        held.num_locks += 1

    def _unlock(self, held: Held) -> None:
        held.num_locks -= 1
        freed = self.cache.unlock(held.handle)
        assert sorted(freed) == sorted(self.oracle.unlock(held.path))
        self.allocator.free(freed)
        if held.num_locks == 0:
            self.locked.remove(held)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=settings().max_examples, stateful_step_count=150)
