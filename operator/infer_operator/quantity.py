"""Kubernetes quantities: as people write them in, their value or their canonical form out. Pure.

The API server stores the canonical form, so builders write it, or every comparison would find a difference:
https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import math
from fractions import Fraction

_NANO = 10**9
_DECIMAL = {"n": 1, "u": 10**3, "m": 10**6, "": _NANO, "k": 10**12, "M": 10**15, "G": 10**18, "T": 10**21, "P": 10**24}
"""suffix -> billionths, of which the API server knows no part"""
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def value_of(quantity: int | str) -> Fraction:
    """In units: bytes, cores, devices. Raises ValueError for what is no quantity."""
    number, suffix = _split(str(quantity))
    if suffix in _BINARY:
        return Fraction(number) * _BINARY[suffix]
    return Fraction(number) * Fraction(_DECIMAL[suffix], _NANO)


def canonical(quantity: int | str) -> str:
    """No fraction, the largest suffix that needs none; powers of two only where they were written and fit."""
    _, suffix = _split(str(quantity))
    value = value_of(quantity)
    if value == 0:
        return "0"
    if suffix in _BINARY and value >= 1024 and value.denominator == 1:
        return _largest(value.numerator, {"": 1} | _BINARY)
    return _largest(math.ceil(value * _NANO), _DECIMAL)


def canonical_amount(quantity: int | str) -> str:
    """The same for a container's resources and a claim's size, of which the API server keeps thousandths, rounded up."""
    value = value_of(quantity)
    if (value * 1000).denominator == 1:
        return canonical(quantity)
    return canonical(f"{math.ceil(value * 1000)}m")


def _largest(amount: int, units: dict[str, int]) -> str:
    size, name = max((size, name) for name, size in units.items() if amount % size == 0)
    return f"{amount // size}{name}"


def _split(text: str) -> tuple[str, str]:
    number = text.rstrip("nmukKMGTPi")
    suffix = text[len(number) :]
    if not number.replace(".", "", 1).isdigit() or (suffix not in _DECIMAL and suffix not in _BINARY):
        raise ValueError(f"got {text!r}; must be a quantity such as 2, 500m or 16Gi")
    return number, suffix
