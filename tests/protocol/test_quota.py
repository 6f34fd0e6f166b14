"""Quotas: what fits is let in and nothing else, and clients read the kind from the words."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.errors import QuotaExceededError
from sandboxrt.models import Limits, Quota
from sandboxrt.protocol.quota import Usage, check_quota
from sandboxrt.protocol.rest_errors import Call, ErrorBody, control_error

KINDS = ("sandbox_count", "cpu", "memory", "storage")
MOST = st.none() | st.integers(0, 40)
ASKED = st.none() | st.integers(1, 20)


@given(st.tuples(MOST, MOST, MOST, MOST), st.tuples(*[st.integers(0, 40)] * 4), st.tuples(ASKED, ASKED, ASKED))
def test_what_fits(
    most: tuple[int | None, ...], taken: tuple[int, ...], asked: tuple[int | None, int | None, int | None]
) -> None:
    quota = Quota(sandboxes=most[0], vcpus=most[1], mem_bytes=most[2], storage_bytes=most[3])
    usage = Usage(sandboxes=taken[0], vcpus=taken[1], mem_bytes=taken[2], storage_bytes=taken[3])
    limits = Limits(vcpus=asked[0], mem_bytes=asked[1], disk_bytes=asked[2])
    wanted = (1, *asked)
    too_much = [
        kind
        for kind, m, t, w in zip(KINDS, most, taken, wanted, strict=True)
        if m is not None and (w is None or t + w > m)
    ]
    if not too_much:
        check_quota(quota, usage, limits)
        return
    with pytest.raises(QuotaExceededError) as caught:
        check_quota(quota, usage, limits)
    assert caught.value.quota_type == too_much[0]
    # What a client makes of the answer.
    told = control_error(429, ErrorBody(str(caught.value.args[0])), Call.CREATE_SANDBOX)
    assert isinstance(told, QuotaExceededError) and told.quota_type == too_much[0]


def test_a_keys_word_comes_before_the_servers() -> None:
    server = Quota(sandboxes=3, vcpus=8.0)
    assert Quota(sandboxes=0, mem_bytes=5).over(server) == attrs.evolve(server, sandboxes=0, mem_bytes=5)
    assert Quota().over(server) == server
