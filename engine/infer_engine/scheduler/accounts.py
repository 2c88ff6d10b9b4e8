"""What each tenant looks up, hits, holds and loses in the KV pool.

In: the ledger's movements, and the cache's counters per namespace. Out: one `TenantCacheUsage` per tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infer_engine.stats import TenantCacheUsage

if TYPE_CHECKING:
    from infer_engine.cache import NamespaceUsage


@dataclass(slots=True)
class Account:
    """Cumulative, but for `own`: slots that the tenant's running sequences own now, the tree's not included."""

    lookup: int = 0
    hit: int = 0
    evicted: int = 0
    own: int = 0


class TenantAccounts:
    """Written by the step loop. The cache knows namespaces only; who uses one is learned from its requests."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._tenant_of: dict[str, str] = {}  # namespace -> the tenant that used it last
        self._evicted_before: dict[str, int] = {}  # namespace -> evictions that are in an account already

    def __getitem__(self, tenant: str) -> Account:
        return self._accounts.setdefault(tenant, Account())

    def own_tokens(self) -> dict[str, int]:
        """Tenants that own any."""
        return {tenant: account.own for tenant, account in self._accounts.items() if account.own}

    def learn(self, namespace: str, tenant: str) -> None:
        self._tenant_of[namespace] = tenant

    def settle(self, usage: Mapping[str, NamespaceUsage]) -> dict[str, TenantCacheUsage]:
        """Take the cache's counters in and say where each tenant stands. O(namespaces + tenants).

        A namespace that the cache has forgotten is forgotten here too, so that names minted per user do not pile up.
        """
        cached = dict.fromkeys(self._accounts, 0)
        for namespace, counters in usage.items():
            tenant = self._tenant_of.get(namespace)
            if tenant is None:
                continue
            cached[tenant] = cached.get(tenant, 0) + counters.num_tokens
            before = self._evicted_before.get(namespace, 0)
            newly = counters.num_evicted_tokens - before
            self[tenant].evicted += newly if newly >= 0 else counters.num_evicted_tokens  # it began again at 0
            self._evicted_before[namespace] = counters.num_evicted_tokens
        self._tenant_of = {name: tenant for name, tenant in self._tenant_of.items() if name in usage}
        self._evicted_before = {name: count for name, count in self._evicted_before.items() if name in usage}
        return {
            tenant: TenantCacheUsage(
                lookup_tokens=account.lookup,
                hit_tokens=account.hit,
                kv_tokens=account.own + cached.get(tenant, 0),
                evicted_tokens=account.evicted,
            )
            for tenant, account in self._accounts.items()
        }
