"""What a field of the resource may hold: types with their bounds, and in words what is allowed."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=2**53)]
Text = Annotated[str, Meta(min_length=1, max_length=1024, description="a text of 1 to 1024 characters")]
DeploymentName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z]([-a-z0-9]{0,23}[a-z0-9])?$",
        max_length=25,
        description="a DNS label of at most 25 characters, a letter first",
    ),
]
"""Services are named after it, and their names begin with a letter."""
KubernetesName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        max_length=63,
        description="a DNS label of at most 63 characters",
    ),
]
ModelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/:]{0,127}$",
        max_length=128,
        description="1 to 128 letters, digits and . _ / : -, a letter or digit first",
    ),
]
Digest = Annotated[
    str,
    Meta(
        pattern=r"^sha256:[0-9a-f]{64}$",
        max_length=71,
        description="sha256: and 64 lower-case hex digits, as `inferengine fetch --digest URI` prints it",
    ),
]
ObjectName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$",
        max_length=253,
        description="the name of an object: 1 to 253 lower-case letters, digits and - .",
    ),
]
SecretKey = Annotated[
    str,
    Meta(
        pattern=r"^[-._a-zA-Z0-9]{1,253}$",
        max_length=253,
        description="a key of a Secret: 1 to 253 letters, digits and - _ .",
    ),
]
ResourceName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
        max_length=317,
        description="an extended resource such as nvidia.com/gpu",
    ),
]
Quantity = Annotated[
    Annotated[int, Meta(ge=0, le=2**53)]
    | Annotated[str, Meta(max_length=18, pattern=r"^[0-9]{1,12}([.][0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")],
    Meta(description='a Kubernetes quantity such as 2, "500m" or 16Gi (a fraction in quotes)'),
]
PublicKey = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-zA-Z.:+=^!/*?&<>(){}@%$#\[\]-]{40}$",
        max_length=40,
        description="a CURVE public key, 40 characters of Z85",
    ),
]
HostTemplate = Annotated[
    str,
    Meta(
        pattern=r"^([a-z0-9]|[{]tenant[}])([-a-z0-9.]|[{]tenant[}])*$",
        max_length=200,
        description="a DNS name or an IPv4 address of at most 200 characters, in which {tenant} stands for the tenant's name",
    ),
]
Port = Annotated[int, Meta(ge=1024, le=65535)]
Seconds = Annotated[int, Meta(ge=1, le=3600)]
Strings = Annotated[dict[str, Annotated[str, Meta(max_length=4096)]], Meta(max_length=64)]
Object = dict[str, Any]
"""A part of a pod or a policy in Kubernetes' own words: the API server checks it when the object is made."""
Objects = Annotated[tuple[Object, ...], Meta(max_length=64)]
