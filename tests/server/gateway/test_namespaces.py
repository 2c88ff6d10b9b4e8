from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_server.gateway.namespaces import ModelIdentity, NamespaceKeyError, NamespaceMinter, encode_fields

fields = st.lists(st.none() | st.text(max_size=8), max_size=5).map(tuple)
KEY = bytes(range(32))
MODEL = ModelIdentity("rev", "tok", "bfloat16:2x1x8")


@given(fields, fields)
def test_the_encoding_is_injective(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    assert (encode_fields(one) == encode_fields(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(("ab", "c"), ("a", "bc")), ((None,), ("",)), (("",), ("", "")), (("a", None), ("a", "n")), (("\0",), ("\0\0",))],
)
def test_moving_a_boundary_changes_the_encoding(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    assert encode_fields(one) != encode_fields(other)


def test_each_fact_makes_another_namespace() -> None:
    minter = NamespaceMinter(KEY)
    minted = [
        minter.mint("uid-1", MODEL, None),
        minter.mint("uid-2", MODEL, None),
        minter.mint("uid-1", MODEL, ""),
        minter.mint("uid-1", MODEL, "salt"),
        minter.mint("uid-1", ModelIdentity("rev2", "tok", MODEL.kv_layout), None),
        minter.mint("uid-1", ModelIdentity("rev", "tok2", MODEL.kv_layout), None),
        minter.mint("uid-1", ModelIdentity("rev", "tok", "float32:2x1x8"), None),
        NamespaceMinter(bytes(32)).mint("uid-1", MODEL, None),
    ]
    assert len(set(minted)) == len(minted)
    assert minter.mint("uid-1", MODEL, "salt") == minted[3]


@pytest.mark.parametrize("content", ["", "ab" * 31, "zz" * 32, "ü"])
def test_a_wrong_key_file_is_refused_without_showing_its_content(content: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(NamespaceKeyError, match="64 hex digits") as caught:
        NamespaceMinter.from_file(path)
    assert not content or content not in str(caught.value)


def test_a_key_file_may_end_with_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY.hex() + "\n")
    assert NamespaceMinter.from_file(path).mint("u", MODEL, None) == NamespaceMinter(KEY).mint("u", MODEL, None)
