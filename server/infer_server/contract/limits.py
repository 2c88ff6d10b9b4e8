"""QuotaLimits in, the fields of a tenant's limits hash out, and back: the one encoding of limits in the store.

The hash lives at `tenant_key(tenant_id, "limits")`. The document's writer sets it, the quota functions in the store read it.
Every field is always written, "no limit" as an empty string. So one HSET of the whole mapping replaces the limits at once,
no field of earlier limits survives it, and a tenant without any limit differs from a tenant without a hash, who is denied.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from infer_server.contract.document import QuotaLimits

_FIELDS = msgspec.structs.fields(QuotaLimits)


def encode_limits(limits: QuotaLimits) -> dict[str, str]:
    """Names as in the document (camelCase); numbers in the shortest decimal form that reads back the same."""
    values = ((field.encode_name, getattr(limits, field.name)) for field in _FIELDS)
    return {name: "" if value is None else repr(value) for name, value in values}


def decode_limits(fields: Mapping[str, str]) -> QuotaLimits:
    """Raises ValueError naming the field. A field that a later version wrote is ignored, a missing one is its default."""
    known = {field.encode_name for field in _FIELDS}
    try:
        return msgspec.convert(
            {name: text for name, text in fields.items() if name in known and text != ""}, QuotaLimits, strict=False
        )
    except msgspec.ValidationError as error:
        raise ValueError(f"limits in the store are damaged: {error}") from error
