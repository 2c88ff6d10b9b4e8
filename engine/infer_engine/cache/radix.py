"""The prefix cache: which leading tokens of a prompt already have their K/V in the pool, and in which slots.

In: tokens with their namespace, the slots that a request filled, and how many tokens the pool needs back. Out: slots. The tree
owns every slot it took in until `evict`, `drop_namespace` or `unlock` returns it; the caller gives those to the allocator.
It exists so that a prompt's prefix is computed once. Pure bookkeeping: no tensor is touched here.

Not thread-safe: the engine serialises calls. After RadixAttention (SGLang, arXiv:2312.07104).

A request's slots are in position order. With a handle `h` that it holds and n tokens computed:

    [0, h.num_tokens)  the tree's, locked      [h.num_tokens, n)  the request's own

It hands its own over like this, with no other call between:

    if cache.is_live(h):                                  # else its namespace was dropped: it keeps its own, inserts nothing
        cache.unlock(h)                                   # first, so that a leaf that only it holds grows in place
        r = cache.insert(key, slots)                      # the tree takes slots[r.num_existing:]
        cache.lock(r.handle)                              # if the request goes on
        duplicates = slots[h.num_tokens:r.num_existing]   # still the request's: to be freed ...
        slots = cache.slots(r.handle)                     # ... as it reads the tree's from here on
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from infer_engine.cache.eviction import Priority, find_policy
from infer_engine.cache.integrity import check_integrity
from infer_engine.cache.node import EVICTED, TOKEN_BYTES, Node, Root
from infer_engine.cache.prefix import Handle, InsertResult, MatchResult, NamespaceUsage, RadixKey
from infer_engine.cache.shares import EvictionCause, ShareGroup, Shares
from infer_engine.cache.walk import find_prefix, gather_slots, resolve
from infer_engine.errors import RejectedError, StaleHandle

__all__ = ["Handle", "InsertResult", "MatchResult", "NamespaceUsage", "RadixCache", "RadixKey"]


class RadixCache:
    """One radix tree per namespace, one order of eviction per share group (one in all, unless keys name some). Token-granular.

    A locked prefix is never evicted. "Use" is an unlock or an insert, also of an existing key; a match is none. Eviction takes,
    of the group that has to pay (shares.py), the tokens whose last use is longest ago, of one path the deepest first: exact
    LRU, in O(1) per leaf.
    """

    def __init__(self, policy: str | Priority = "lru") -> None:
        """policy: by name, or a priority of your own (eviction.py). Raises ConfigError for an unknown name."""
        self.shares = Shares(find_policy(policy))
        self.now = 0.0
        """when uses take place, for `expire`; written by whoever has a clock"""
        self._roots: dict[str, Root] = {}
        self._dropped_roots: set[Root] = set()  # still locked somewhere
        self._num_tokens = 0
        self._num_protected_tokens = 0
        self._num_nodes = 0

    @property
    def num_tokens(self) -> int:
        """Slots that the tree owns."""
        return self._num_tokens

    @property
    def num_evictable_tokens(self) -> int:
        """What `evict` can free now."""
        return self._num_tokens - self._num_protected_tokens

    @property
    def num_protected_tokens(self) -> int:
        return self._num_protected_tokens

    @property
    def num_nodes(self) -> int:
        """Roots not counted."""
        return self._num_nodes

    def match_prefix(self, key: RadixKey, lock: bool = False) -> MatchResult:
        """Find the longest cached prefix of `key`. Without `lock` nothing changes, not even the order of eviction.

        With it the handle comes locked, as by `lock`.
        """
        root = self._roots.get(key.namespace)
        if root is None:
            root = Root(key.namespace, self.shares.peek(key.group))  # known to this handle only
        node, num_tokens = find_prefix(root, key.data)
        handle = Handle(self, node, num_tokens)
        slots = gather_slots(node, num_tokens)
        if lock:
            self.lock(handle)
        return MatchResult(num_tokens, slots, handle)

    def num_matched(self, key: RadixKey) -> int:
        """How many tokens `match_prefix` would find, without a handle or slots: a fraction of its cost."""
        root = self._roots.get(key.namespace)
        return 0 if root is None else find_prefix(root, key.data)[1]

    def insert(self, key: RadixKey, slots: Sequence[int]) -> InsertResult:
        """Make `key` known, with its K/V in `slots`, and count it as used.

        The tree takes ownership of slots[num_existing:] only and copies them. Of the others it keeps its own: the caller still
        owns those of slots[:num_existing] that differ. The slots of a dropped namespace must not be
        given to a new one of that name: see the module's head for the question to ask first.

        The whole key may be evicted from here on unless it is locked. A leaf that nobody holds grows in place: unlock, then
        insert, then lock again, and a conversation stays one node.

        Raises RejectedError if there isn't one slot per token.
        """
        data = key.data
        if len(slots) * TOKEN_BYTES != len(data):
            raise RejectedError(f"slots: got {len(slots)} for {len(key)} tokens; give one slot per token")
        root = self._roots.get(key.namespace)
        if root is None:
            if not data:
                return InsertResult(0, Handle(self, Root(key.namespace, self.shares.peek(key.group)), 0))
            root = self._make_root(key.namespace, key.group)
        node, num_existing = find_prefix(root, data)
        if num_existing < node.end_idx:
            node = self._split(node, num_existing - node.start_idx)
        if num_existing < len(slots):
            tail = array("i", slots[num_existing:])
            node = self._append(node, data[num_existing * TOKEN_BYTES :], tail)
        self._touch_path(node)
        return InsertResult(num_existing, Handle(self, node, len(slots)))

    def slots(self, handle: Handle) -> array[int]:
        """A copy of the tree's slots of that prefix. Raises StaleHandle if it is gone."""
        if handle._num_tokens == 0:
            return array("i")
        return gather_slots(self._find(handle), handle._num_tokens)

    def is_live(self, handle: Handle) -> bool:
        """Whether its prefix is still there, so that `lock` and `slots` accept it."""
        self._check_owner(handle)
        if handle._num_tokens == 0:
            return not (handle._num_locks and handle._node.root.is_dropped)
        return resolve(handle) is not None

    def lock(self, handle: Handle) -> None:
        """Protect the prefix from eviction until a matching `unlock` of the same handle. Each lock needs its own unlock.

        Raises StaleHandle if the prefix is gone.
        """
        self._check_owner(handle)
        if handle._num_locks == 0:
            handle._node = self._node_to_lock(handle)
        elif handle._node.root.is_dropped:
            raise _stale(handle)
        handle._num_locks += 1
        node = handle._node
        root = node.root
        order = root.order
        num_locked = 0
        while node is not root:
            if node.lock_ref == 0:
                order.remove(node)
                num_locked += len(node.slots)
            node.lock_ref += 1  # up to the root: keeps I4
            node = node.parent
        root.lock_ref += 1
        root.num_protected_tokens += num_locked
        root.group.num_protected_tokens += num_locked
        self._num_protected_tokens += num_locked

    def unlock(self, handle: Handle) -> array[int]:
        """Take back one `lock` of this handle and count its prefix as used where nobody else holds it.

        Returns the slots that the tree gives up: none, except that in a dropped namespace they are those of this prefix which
        nobody else holds. The caller owns them then, and frees them. Raises AssertionError if the handle is not locked.
        """
        self._check_owner(handle)
        if handle._num_locks == 0:
            raise AssertionError(f"unlock of {handle!r}, which is not locked: each lock allows one unlock")
        handle._num_locks -= 1
        node = handle._node
        root = node.root
        if root.is_dropped:
            return self._unlock_dropped(node, root)
        order = root.order
        now = self.now
        num_unlocked = 0
        while node is not root:
            node.lock_ref -= 1
            if node.lock_ref == 0:
                order.add(node)
                node.used_at = now
                num_unlocked += len(node.slots)
            node = node.parent
        root.lock_ref -= 1
        root.num_protected_tokens -= num_unlocked
        root.group.num_protected_tokens -= num_unlocked
        self._num_protected_tokens -= num_unlocked
        if not root.children:
            self._retire_if_empty(root)
        return array("i")

    def evict(self, num_tokens: int, group: str = "") -> array[int]:
        """Give back the slots of `num_tokens` tokens, or of all that can be evicted for `group` if they are fewer.

        The groups pay in turn, as shares.py says, each with the tokens that it used longest ago: whole leaves, one after the
        other, the last of a turn trimmed from its end, so exactly as many are freed as asked. Asking for one token at a time
        copies a long leaf each time: ask for a batch.
        """
        only = self.shares.only
        if only is not None and only.name == group:  # nobody else's turn: a third of the time
            return self.evict_from(only, num_tokens, "pressure")
        freed = array("i")
        for _, slots in self.evict_in_turns(num_tokens, group):
            freed += slots
        return freed

    def evict_in_turns(self, num_tokens: int, group: str) -> Iterator[tuple[ShareGroup, array[int]]]:
        """`evict`, a turn at a time: who paid, and its slots. Nothing else is called until it ends."""
        num_missing = num_tokens
        while num_missing > 0:
            turn = self.shares.next_turn(num_missing, group)
            if turn is None:
                return
            freed = self.evict_from(turn.group, turn.num_tokens, "pressure")
            turn.group.note_taken(len(freed), group)
            num_missing -= len(freed)
            yield turn.group, freed

    def evict_from(self, group: ShareGroup, num_tokens: int, cause: EvictionCause) -> array[int]:
        """`evict` from one group, whatever its share."""
        freed = array("i")
        order = group.order
        num_missing = num_tokens
        while num_missing > 0:
            leaf = order.victim()
            if leaf is None:
                break
            num_leaf = len(leaf.slots)
            if num_leaf > num_missing:
                self._split(leaf, num_leaf - num_missing)
                num_leaf = num_missing
            self._take_out(leaf, num_leaf)
            num_missing -= num_leaf
            freed += leaf.slots
        num_freed = len(freed)
        group.num_tokens -= num_freed
        group.num_evicted[cause] += num_freed
        self._num_tokens -= num_freed
        return freed

    def expire(self, group: ShareGroup, before: float) -> array[int]:
        """Give back the slots of what was last used before then. O(nodes of the group)."""
        freed = array("i")
        for node in group.order.nodes():  # each after its children
            if node.used_at < before and not node.children:
                self._take_out(node, len(node.slots))
                freed += node.slots
        num_freed = len(freed)
        group.num_tokens -= num_freed
        group.num_evicted["ttl"] += num_freed
        self._num_tokens -= num_freed
        return freed

    def _take_out(self, leaf: Node, num_tokens: int) -> None:
        """An unlocked leaf, of so many tokens, leaves the tree. What its group and the cache have is counted by the caller."""
        root = leaf.root
        root.order.remove(leaf)
        leaf.lock_ref = EVICTED  # it keeps its parent: a handle whose prefix ended above still finds it
        siblings = leaf.parent.children
        del siblings[leaf.key[:TOKEN_BYTES]]
        root.num_tokens -= num_tokens
        self._num_nodes -= 1
        if not siblings and not root.children:
            self._retire_if_empty(root)

    def drop_namespace(self, namespace: str) -> array[int]:
        """Forget the namespace at once: nothing matches in it any more, and its handles are stale. Unknown names do nothing.

        Returns the slots that nobody holds. The others keep their K/V and come back from `unlock`, each with the last handle
        that holds it. The name may be used again meanwhile; it begins empty.
        """
        freed = array("i")
        root = self._roots.pop(namespace, None)
        if root is None:
            return freed
        root.is_dropped = True
        pending: list[Node] = [root]
        while pending:
            node = pending.pop()
            children = list(node.children.values())
            pending += children
            if node.lock_ref == 0 and node is not root:
                root.order.remove(node)
                freed += node.slots
                self._num_nodes -= 1
                node.lock_ref = EVICTED
            # Also breaks the cycles parent-child, so that memory goes without the garbage collector.
            node.children = {child.key[:TOKEN_BYTES]: child for child in children if child.lock_ref > 0}
        root.num_tokens -= len(freed)
        root.group.num_tokens -= len(freed)
        root.group.num_evicted["purge"] += len(freed)
        self._num_tokens -= len(freed)
        if root.lock_ref > 0:
            self._dropped_roots.add(root)
        return freed

    def group_of(self, namespace: str) -> ShareGroup | None:
        """Whose it is; None of one that has neither tokens nor locks."""
        root = self._roots.get(namespace)
        return None if root is None else root.group

    def namespaces_of(self, group: ShareGroup) -> list[str]:
        """That count to it and were not dropped. O(namespaces)."""
        return [name for name, root in self._roots.items() if root.group is group]

    def usage(self) -> dict[str, NamespaceUsage]:
        """Per namespace that has tokens or locks."""
        usage: dict[str, NamespaceUsage] = {}
        for root in (*self._roots.values(), *self._dropped_roots):
            before = usage.get(root.namespace, NamespaceUsage(0, 0))
            usage[root.namespace] = NamespaceUsage(
                before.num_tokens + root.num_tokens, before.num_protected_tokens + root.num_protected_tokens
            )
        return usage

    def check_integrity(self) -> None:
        """Raise AssertionError naming the first invariant of integrity.py that does not hold. O(tokens)."""
        check_integrity(self)

    def _check_owner(self, handle: Handle) -> None:
        if handle._cache is not self:
            raise AssertionError(f"{handle!r} belongs to another cache")

    def _find(self, handle: Handle) -> Node:
        self._check_owner(handle)
        node = resolve(handle)
        if node is None:
            raise _stale(handle)
        return node

    def _node_to_lock(self, handle: Handle) -> Node:
        """The node that ends exactly where the prefix does; splits one to get it. Without tokens, the namespace's root."""
        if handle._num_tokens == 0:
            namespace = handle.namespace
            return self._roots.get(namespace) or self._make_root(namespace, handle._node.root.group.name)
        node = self._find(handle)
        if handle._num_tokens < node.end_idx:
            return self._split(node, handle._num_tokens - node.start_idx)
        return node

    def _make_root(self, namespace: str, group_name: str) -> Root:
        root = self._roots[namespace] = Root(namespace, self.shares[group_name])
        return root

    def _split(self, lower: Node, num_upper: int) -> Node:
        """Cut the first `num_upper` tokens off `lower` into a new parent, which is returned; both keep the lock."""
        key = lower.key
        cut = num_upper * TOKEN_BYTES
        parent = lower.parent
        upper = Node(key[:cut], lower.slots[:num_upper], lower.start_idx, parent, lower.root, lower.lock_ref)
        upper.used_at = lower.used_at
        parent.children[key[:TOKEN_BYTES]] = upper
        lower.key = key[cut:]
        lower.slots = lower.slots[num_upper:]
        lower.start_idx += num_upper
        lower.parent = upper
        upper.children[lower.key[:TOKEN_BYTES]] = lower
        lower.root.order.split(upper, lower)  # keeps I6
        self._num_nodes += 1
        return upper

    def _append(self, node: Node, data: bytes, slots: array[int]) -> Node:
        """Continue `node`, at its end, by new tokens: in place if it is a leaf that nobody holds, else in a new child."""
        root = node.root
        if node.lock_ref == 0 and not node.children and node is not root:
            node.key += data
            node.slots += slots
        else:
            child = Node(data, slots, node.end_idx, node, root)
            node.children[data[:TOKEN_BYTES]] = child
            root.order.add(child)
            self._num_nodes += 1
            node = child
        root.num_tokens += len(slots)
        root.group.num_tokens += len(slots)
        self._num_tokens += len(slots)
        return node

    def _touch_path(self, node: Node) -> None:
        root = node.root
        touch = root.order.touch
        now = self.now
        while node.lock_ref == 0 and node is not root:  # above a locked node all are locked (I4); leaf first keeps I6
            touch(node)
            node.used_at = now
            node = node.parent

    def _unlock_dropped(self, node: Node, root: Root) -> array[int]:
        freed = array("i")
        while node is not root:
            parent = node.parent
            node.lock_ref -= 1
            if node.lock_ref == 0:
                freed += node.slots
                del parent.children[node.key[:TOKEN_BYTES]]
                node.lock_ref = EVICTED
                self._num_nodes -= 1
            node = parent
        root.lock_ref -= 1
        root.num_tokens -= len(freed)
        root.num_protected_tokens -= len(freed)
        root.group.num_tokens -= len(freed)
        root.group.num_protected_tokens -= len(freed)
        root.group.num_evicted["purge"] += len(freed)
        self._num_tokens -= len(freed)
        self._num_protected_tokens -= len(freed)
        if root.lock_ref == 0:
            self._dropped_roots.discard(root)
        return freed

    def _retire_if_empty(self, root: Root) -> None:
        if not root.children and root.lock_ref == 0:  # keeps I5
            del self._roots[root.namespace]


def _stale(handle: Handle) -> StaleHandle:
    return StaleHandle(
        f"the prefix of {handle.num_tokens} tokens in namespace {handle.namespace!r} was evicted or dropped: match again"
    )
