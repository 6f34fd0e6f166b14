"""Tokens: what they claim comes back, and nothing that was altered does."""

from __future__ import annotations

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.protocol.tokens import (
    DownloadClaims,
    ServiceClaims,
    TokenError,
    TokenExpiredError,
    TokenKey,
    check_download,
    check_service,
    issue_download,
    issue_service,
)

KEY = TokenKey("a", b"1" * 32)
OTHER = TokenKey("b", b"2" * 32)
CLAIMS = ServiceClaims(sandbox_id="box", port=3000, tenant="acme", expires_at=1000.5)


def test_a_token_is_good_until_it_expires() -> None:
    token = issue_service(CLAIMS, KEY)
    assert check_service(token, [OTHER, KEY], 1000.4) == CLAIMS
    with pytest.raises(TokenExpiredError):
        check_service(token, [KEY], 1000.5)


def test_keys_rotate() -> None:
    token = issue_service(CLAIMS, KEY)
    assert check_service(token, [OTHER, KEY], 0) == CLAIMS
    with pytest.raises(TokenError):
        check_service(token, [OTHER], 0)
    with pytest.raises(TokenError):
        check_service(token, [TokenKey("a", OTHER.secret)], 0)


@given(st.data())
def test_no_altered_character_is_believed(data: st.DataObject) -> None:
    token = issue_service(CLAIMS, KEY)
    place = data.draw(st.integers(0, len(token) - 2))  # the last one has bits that mean nothing
    character = data.draw(st.sampled_from("abcXYZ019-_.="))
    altered = token[:place] + character + token[place + 1 :]
    if altered != token:
        with pytest.raises(TokenError):
            check_service(altered, [KEY], 0)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_anything_else_is_refused(text: str) -> None:
    for check in (check_service, check_download):
        with pytest.raises(TokenError):
            check(text, [KEY], 0)


@pytest.mark.parametrize(
    "forged",
    [
        jwt.encode({"aud": "service", "sid": "box", "port": 1, "tenant": "", "exp": 9e9}, None, algorithm="none"),
        jwt.encode(
            {"aud": "service", "sid": "box", "port": 1, "tenant": "", "exp": 9e9}, KEY.secret, headers={"kid": "x"}
        ),
        jwt.encode({"aud": "service", "sid": "box", "port": 1, "exp": 9e9}, KEY.secret, headers={"kid": "a"}),
        jwt.encode({"aud": "service", "sid": "box", "port": "1", "tenant": ""}, KEY.secret, headers={"kid": "a"}),
        jwt.encode(
            {"aud": "service", "sid": "box", "port": 1, "tenant": "", "exp": 9e9},
            KEY.secret * 2,
            algorithm="HS512",
            headers={"kid": "a"},
        ),
    ],
    ids=["unsigned", "unknown key", "no tenant", "no expiry", "another algorithm"],
)
def test_forged_tokens(forged: str) -> None:
    with pytest.raises(TokenError):
        check_service(forged, [KEY], 0)


def test_a_download_is_no_service_and_the_other_way_round() -> None:
    claims = DownloadClaims(
        sandbox_id="box", path="/a b", tenant="acme", content_type="text/plain", disposition="inline"
    )
    token = issue_download(claims, KEY)
    assert check_download(token, [KEY], 1e12) == claims
    with pytest.raises(TokenError):
        check_service(token, [KEY], 0)
    with pytest.raises(TokenError):
        check_download(issue_service(CLAIMS, KEY), [KEY], 0)
