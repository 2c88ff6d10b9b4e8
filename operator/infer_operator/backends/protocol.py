"""What a home for pods offers to the reconciler: a cluster, or this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from infer_operator.state import Change, Content, Key, Observed, Resource, TenantRecord
from infer_operator.status import Access, Health, Status


class RefusedError(Exception):
    """An object can't be made as it is wanted: its name is another's, or its content is not allowed.

    The message says which and why.
    """


class Backend(Protocol):
    async def observe(self, key: Key) -> Observed:
        """All there is, now. Changes nothing. An unreachable store is told in the answer, not raised."""
        ...

    def build(self, key: Key, resource: Resource, records: Mapping[str, TenantRecord]) -> Mapping[str, Content]:
        """Name -> content of every object that should exist, in the order in which they are to be made.

        Pure: same arguments, same answer.
        """
        ...

    def same(self, name: str, observed: Content | None, wanted: Content) -> bool:
        """Whether nothing needs to be written."""
        ...

    def claim_port(self, port: int) -> bool:
        """Make it ours; False if something other than a tenant of the resource at hand has it."""
        ...

    async def apply(self, key: Key, change: Change) -> None:
        """Carry out one change, durably before it returns.

        Raises StoreUnavailableError or RevisionConflictError for a document, RefusedError for an object that can't be made,
        OSError or KubeError for what cannot be kept.
        """
        ...

    def access(self, key: Key, record: TenantRecord) -> Access: ...

    async def health(self, key: Key) -> Health:
        """How the pods are, and what those that are ready reported."""
        ...

    async def last_status(self, key: Key) -> Status | None: ...

    async def report(self, key: Key, status: Status) -> None:
        """Make the status known; called only with one that differs from the last."""
        ...
