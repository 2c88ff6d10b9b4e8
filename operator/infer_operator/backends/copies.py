"""Tenants' Secrets in other namespaces: what the resource wants and their owners allow is there. One run of one resource.

The owner of a namespace consents by an annotation on it. It is read anew with each run, and every resource has a run each half
minute (rounds.py): so consent that is taken back takes the copies with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infer_operator.backends.drift import sealed
from infer_operator.backends.protocol import RefusedError
from infer_operator.backends.tenants import is_owned, taken
from infer_operator.builders import copies, secret
from infer_operator.cluster import Cluster
from infer_operator.kube import CONFIG_MAP, NAMESPACE, REFUSALS, ApiError, Object
from infer_operator.state import Content, Key, Resource
from infer_operator.store import place

PREFIX = "Copy/"
"""of the names under which the reconciler compares them; then namespace and tenant"""


class Copies:
    def __init__(self, cluster: Cluster, key: Key, resource: Resource) -> None:
        self._cluster = cluster
        self._key = key
        self._resource = resource
        self._allowed: list[tuple[str, str]] = []
        """tenant and namespace, filled by `observe`"""
        self.denied: list[str] = []
        """what can't be done, and the way out, a line each; filled by `observe`"""

    async def observe(self) -> dict[str, Content]:
        reasons: dict[str, str] = {}
        found: dict[str, Content] = {}
        for tenant in self._resource.deployment.spec.tenants:
            for namespace in tenant.secret_namespaces:
                if namespace not in reasons:
                    reasons[namespace] = await self._denial(namespace)
                if reasons[namespace]:
                    self.denied.append(f"tenant {tenant.name}: no copy of its Secret: {reasons[namespace]}")
                    continue
                self._allowed.append((tenant.name, namespace))
                copy = await self._copy(namespace, tenant.name)
                if copy is not None:
                    found[f"{PREFIX}{namespace}/{tenant.name}"] = secret.readable(copy, copies.DATA)
        return found

    async def _copy(self, namespace: str, tenant: str) -> Object | None:
        """None also for one without its note: it goes, whatever was read of it lately."""
        note = self._note(namespace, tenant)
        if note is None:
            return None
        seen = await self._cluster.secrets.read(self._key, self._place(namespace, tenant))
        return seen if seen is not None and is_owned(seen, note["metadata"]["uid"]) else None

    def _note(self, namespace: str, tenant: str) -> Object | None:
        children = self._cluster.store.children(self._key)
        found = children.get((CONFIG_MAP.name, self._place(namespace, tenant)))
        return found if found is not None and copies.is_from(found, self._resource.uid) else None

    async def _denial(self, namespace: str) -> str:
        """Why nothing may be put there, and what to do; empty if it may."""
        if namespace == self._key.namespace:
            return f"{namespace} has the Secret itself: remove it from secretNamespaces"
        only = self._cluster.only_namespace
        if only:
            return (
                f"this operator looks after namespace {only} alone and has no rights in {namespace}: install it for all "
                "namespaces (watchNamespace empty), or remove secretNamespaces"
            )
        found = await self._cluster.kube.read(NAMESPACE, "", namespace)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return f"there is no namespace {namespace}: make it, or remove it from secretNamespaces"
        if not copies.allows(found, self._key.namespace):
            return (
                f"namespace {namespace} takes no Secrets from {self._key.namespace}: its owner allows it by the annotation "
                f"{copies.CONSENT}: {self._key.namespace}"
            )
        return ""

    def build(self, told: Mapping[str, Mapping[str, str]]) -> dict[str, Content]:
        """`told`: by tenant, what its Secret holds, keys and all. The notes come first: they own the copies."""
        wanted = [(tenant, namespace) for tenant, namespace in self._allowed if tenant in told]
        notes = (sealed(copies.note(self._resource, tenant, namespace)) for tenant, namespace in wanted)
        made: dict[str, Content] = {"/".join(place(CONFIG_MAP, note)[1]): note for note in notes}
        whole = {tenant: {name: told[tenant].get(name) for name in copies.DATA} for tenant, _ in wanted}
        return made | {f"{PREFIX}{namespace}/{tenant}": whole[tenant] for tenant, namespace in wanted}

    async def write(self, title: str, content: Mapping[str, str | None]) -> None:
        """Raises RefusedError."""
        namespace, tenant = title.removeprefix(PREFIX).split("/")
        note = self._note(namespace, tenant)
        if note is None:
            return  # it could not be made, and that is told
        data = secret.encode({name: text for name, text in content.items() if text is not None})
        wanted = copies.copy(self._resource, tenant, note, data)
        try:
            await self._put(self._place(namespace, tenant), wanted, note["metadata"]["uid"])
        except ApiError as error:
            if error.status in (409, *REFUSALS):
                raise RefusedError(f"Secret {self._place(namespace, tenant)}: {error.message}") from error
            raise

    async def _put(self, where: str, wanted: Object, note_uid: str) -> None:
        secrets = self._cluster.secrets
        found = await secrets.read_anew(self._key, where)
        if found is not None and not copies.is_from(found, self._resource.uid):
            raise RefusedError(taken("Secret", found))
        if found is not None and not is_owned(found, note_uid):  # the note it belongs to went, and it goes too
            await secrets.delete(self._key, where, found["metadata"]["uid"])
            found = None
        if found is None:
            await secrets.create(self._key, wanted)
        else:
            await secrets.patch(self._key, found, {name: wanted["data"].get(name) for name in copies.DATA})

    def _place(self, namespace: str, tenant: str) -> str:
        return f"{namespace}/{copies.copy_name(self._resource, tenant)}"


async def take_back(cluster: Cluster, key: Key, *, but: str = "") -> None:
    """Delete all notes of this resource, or of those of its name that were before the one with the uid `but`."""
    for note in notes(cluster, key):
        if not (but and copies.is_from(note, but)) and "deletionTimestamp" not in note["metadata"]:
            meta = note["metadata"]
            await cluster.kube.delete(CONFIG_MAP, meta["namespace"], meta["name"], meta["uid"])


def notes(cluster: Cluster, key: Key) -> Iterator[Object]:
    """In whatever namespace. An operator of one namespace can't know what became of resources elsewhere."""
    if cluster.only_namespace in ("", key.namespace):
        for (kind, _), child in cluster.store.children(key).items():
            if kind == CONFIG_MAP.name and copies.SOURCE_LABEL in child["metadata"].get("labels", {}):
                yield child
