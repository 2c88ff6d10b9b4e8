"""Kubernetes quantities: as people write them in, their value or their canonical form out. Pure.

The API server stores the canonical form, so builders write it, or every comparison would find a difference:
https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import math
from fractions import Fraction

_THOUSANDTHS = {"m": 1, "": 10**3, "k": 10**6, "M": 10**9, "G": 10**12, "T": 10**15, "P": 10**18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def value_of(quantity: int | str) -> Fraction:
    """In units: bytes, cores, devices. Raises ValueError for what is no quantity."""
    number, suffix = _split(str(quantity))
    if suffix in _BINARY:
        return Fraction(number) * _BINARY[suffix]
    return Fraction(number) * Fraction(_THOUSANDTHS[suffix], 1000)


def canonical(quantity: int | str) -> str:
    """No fraction, the largest suffix that needs none, powers of two or of ten as they were written.

    Finer than a thousandth (a whole, in powers of two from 1024 on) is rounded up, as the API server does.
    """
    _, suffix = _split(str(quantity))
    value = value_of(quantity)
    if value == 0:
        return "0"
    if suffix in _BINARY and value >= 1024:
        return _largest(math.ceil(value), {"": 1} | _BINARY)
    return _largest(math.ceil(value * 1000), _THOUSANDTHS)


def _largest(amount: int, units: dict[str, int]) -> str:
    size, name = max((size, name) for name, size in units.items() if amount % size == 0)
    return f"{amount // size}{name}"


def _split(text: str) -> tuple[str, str]:
    number = text.rstrip("mkMGTPi" + "K")
    suffix = text[len(number) :]
    if not number.replace(".", "", 1).isdigit() or (suffix not in _THOUSANDTHS and suffix not in _BINARY):
        raise ValueError(f"got {text!r}; must be a quantity such as 2, 500m or 16Gi")
    return number, suffix
