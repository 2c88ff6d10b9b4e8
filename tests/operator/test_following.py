"""What ready pods reported in, whether the tenants are programmed out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_operator.following import programmed
from infer_operator.status import Reports
from infer_server.contract.document import Version
from infer_server.contract.report import PodReport


def said(revision: int, *obstacles: str, uid: str = "u") -> PodReport:
    return PodReport(version=Version(uid=uid, generation=1, revision=revision), obstacles=obstacles)


@pytest.mark.parametrize(
    ("reports", "holds", "reason", "message"),
    [
        ({}, True, "Programmed", "revision 7 is in the quota store; no pod is ready"),
        ({"a": said(7), "b": said(7)}, True, "Programmed", ""),
        ({"a": said(8)}, True, "Programmed", ""),  # another writer's, read before ours was told of it
        ({"a": said(7), "b": said(6)}, False, "Following", "1 of 2 pods follow revision 7\npod b has revision 6"),
        (
            {"a": said(7, "endpoint of n/d/acme: can't listen on 20003")},
            False,
            "Following",
            "0 of 1 pods follow revision 7\npod a has revision 7; endpoint of n/d/acme: can't listen on 20003",
        ),
        (
            {"a": said(9, uid="namesake"), "b": PodReport(), "c": None},
            False,
            "Following",
            "0 of 3 pods follow revision 7\npod a has no revision yet\npod b has no revision yet\n"
            "pod c has reported nothing lately",
        ),
        (
            {"a": said(7), "b": None},
            None,
            "NotReported",
            "1 of 2 pods follow revision 7\npod b has reported nothing lately",
        ),
        (None, None, "NoAnswer", "the quota store does not tell which tenants are served"),
    ],
)
def test_what_is_told(reports: Reports | None, holds: bool | None, reason: str, message: str) -> None:
    finding = programmed("u", 7, reports, None)
    assert (finding.holds, finding.reason, finding.message) == (holds, reason, message)


def test_nothing_is_known_while_the_store_is_away() -> None:
    assert programmed("u", 7, {}, "no answer").holds is None


def test_a_long_list_is_cut() -> None:
    lines = programmed("u", 7, {f"p{number}": None for number in range(10)}, None).message.splitlines()
    assert lines[0] == "0 of 10 pods follow revision 7"
    assert lines[-1] == "and 7 more"
    assert len(lines) == 5


SAID = st.one_of(
    st.none(),
    st.builds(
        said, st.integers(1, 12), st.sampled_from(("", "the model is not loaded")), uid=st.sampled_from(("u", "v"))
    ).map(lambda one: PodReport(version=one.version, obstacles=tuple(filter(None, one.obstacles)))),
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), SAID, min_size=1), st.integers(1, 12))
def test_true_means_that_every_pod_serves_it(reports: dict[str, PodReport | None], revision: int) -> None:
    def serves(one: PodReport | None) -> bool:
        if one is None or one.version is None:
            return False
        return one.version.uid == "u" and one.version.revision >= revision and one.obstacles == ()

    finding = programmed("u", revision, reports, None)
    assert (finding.holds is True) == all(map(serves, reports.values()))
    if finding.holds is not True:
        assert finding.message.startswith(f"{sum(map(serves, reports.values()))} of {len(reports)} pods follow")
