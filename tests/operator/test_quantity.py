"""Quantities as people write them in, as the API server writes them out (tests/cluster compares with a real one)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_operator.quantity import canonical, canonical_amount, value_of


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (2, "2"),
        ("0", "0"),
        ("0.5", "500m"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("1000", "1k"),
        ("1.5k", "1500"),
        ("1024Mi", "1Gi"),
        ("2000Mi", "2000Mi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("0.1Ki", "102400m"),
        ("1.5m", "1500u"),
        ("17179869184", "17179869184"),
    ],
)
def test_canonical(written: int | str, stored: str) -> None:
    assert canonical(written) == stored


def test_amounts_keep_thousandths() -> None:
    assert (canonical_amount("1.5m"), canonical_amount("0.0001"), canonical_amount("1.5Gi")) == ("2m", "1m", "1536Mi")


QUANTITIES = st.builds(
    lambda whole, part, suffix: f"{whole}.{part}{suffix}" if part else f"{whole}{suffix}",
    st.integers(0, 10**6),
    st.integers(0, 999),
    st.sampled_from(["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
)


@given(QUANTITIES)
def test_the_form_changes_and_the_value_stays(written: str) -> None:
    stored = canonical(written)
    assert value_of(stored) == value_of(written)
    assert canonical(stored) == stored
    assert "." not in stored


@given(QUANTITIES)
def test_amounts_are_rounded_up_by_less_than_a_thousandth(written: str) -> None:
    more = value_of(canonical_amount(written)) - value_of(written)
    assert 0 <= more < Fraction(1, 1000)


@pytest.mark.parametrize("written", ["", "x", "1 Gi", "1..5", "Gi", "1GiB", "-1", "1e3"])
def test_what_is_no_quantity(written: str) -> None:
    with pytest.raises(ValueError, match="must be a quantity such as 2, 500m or 16Gi"):
        canonical(written)
