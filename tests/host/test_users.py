"""Users and groups, as images and callers name them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.engine.base import Identity
from sandboxrt.host.users import User, UserNotFoundError, find_user

PASSWD = """root:x:0:0:root:/root:/bin/bash
broken line
app:x:1000:1000::/home/app:/bin/sh
huge:x:99999999:1::/:/bin/sh
1000:x:7:7::/digits:/bin/sh
"""
GROUP = "root:x:0:\nstaff:x:50:app,other\nwheel:x:10:app\napp:x:1000:app\nbad\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, User(Identity(0, 0, ()), "root", "/root")),
        ("", User(Identity(0, 0, ()), "root", "/root")),
        ("app", User(Identity(1000, 1000, (10, 50)), "app", "/home/app")),
        ("app:staff", User(Identity(1000, 50, ()), "app", "/home/app")),
        ("app:77", User(Identity(1000, 77, ()), "app", "/home/app")),
        ("1000", User(Identity(7, 7, ()), "1000", "/digits")),
        ("1234", User(Identity(1234, 0, ()), "1234", "/")),
        ("1234:5678", User(Identity(1234, 5678, ()), "1234", "/")),
        (":50", User(Identity(0, 50, ()), "root", "/root")),
    ],
)
def test_found(text: str | None, expected: User) -> None:
    assert find_user(text, PASSWD, GROUP) == expected


@pytest.mark.parametrize("text", ["ghost", "app:ghosts", "65536", "0:65536", "huge", "-1", "\uff11"])
def test_not_found(text: str) -> None:
    with pytest.raises(UserNotFoundError):
        find_user(text, PASSWD, GROUP)


@given(st.text(), st.text(), st.text())
def test_nothing_the_sandbox_writes_there_breaks_it(text: str, passwd: str, group: str) -> None:
    try:
        user = find_user(text, passwd, group)
    except UserNotFoundError:
        return
    ids = user.identity
    assert 0 <= ids.uid <= 65535
    assert 0 <= ids.gid <= 65535
