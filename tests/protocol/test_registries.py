"""Whose an image is, and what may be said of a named registry: pure rules."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.errors import ValidationError
from sandboxrt.models import Registry, RegistryPage
from sandboxrt.protocol.image_names import RegistryAddress, image_host, parse_registry_url
from sandboxrt.protocol.registries import (
    CreateRegistry,
    ListRegistries,
    RegistryLogin,
    UpdateRegistry,
    changed,
    check_registry,
    cursor_after,
    cursor_start,
    provider_of,
)
from sandboxrt.protocol.registries_wire import (
    create_registry_from_json,
    create_registry_to_json,
    list_registries_to_query,
    registry_from_json,
    registry_page_from_json,
    registry_page_to_json,
    registry_to_json,
    update_registry_from_json,
    update_registry_to_json,
)

MINE = Registry(id="id", name="internal", url="https://registry.example:5000/team", username="robot")


@pytest.mark.parametrize(
    ("reference", "host"),
    [
        ("python:3.12", None),
        ("team/image", None),
        ("library/python@sha256:" + "0" * 64, None),
        ("registry.example/image", "registry.example"),
        ("docker://registry.example:5000/team/image:1", "registry.example:5000"),
        ("localhost/image", "localhost"),
        ("host:5000/image", "host:5000"),
        ("UPPER/image", "UPPER"),
        ("index.docker.io/library/python", "docker.io"),
        ("[::1]:5000/image", "[::1]:5000"),
    ],
)
def test_the_host_of_an_image(reference: str, host: str | None) -> None:
    assert image_host(reference) == host


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("registry.example", RegistryAddress("registry.example")),
        ("https://registry.example/", RegistryAddress("registry.example")),
        ("http://127.0.0.1:5000/a/b/", RegistryAddress("127.0.0.1:5000", "a/b", plain=True)),
        ("HTTPS://Registry.Example", RegistryAddress("Registry.Example")),
        ("https://index.docker.io/v1/", RegistryAddress("docker.io")),
        ("registry-1.docker.io", RegistryAddress("docker.io")),
        ("docker.io/team", RegistryAddress("docker.io", "team")),
        ("[::1]:5000", RegistryAddress("[::1]:5000")),
    ],
)
def test_addresses_of_registries(url: str, address: RegistryAddress) -> None:
    assert parse_registry_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "https://",
        "ftp://registry.example",
        "user@registry.example",
        "https://user:pw@registry.example",
        "registry.example/a b",
        "registry.example//a",
        "registry.example/../a",
        "registry.example?x=1",
        "registry.example#x",
        "registry..example",
        "registry.example:0",
        "registry.example:65536",
        "registry.example:x",
        "-registry.example",
        "registry.example\n",
        "a" * 600,
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="HOST"):
        parse_registry_url(url)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(url: str) -> None:
    try:
        address = parse_registry_url(url)
    except ValueError:
        return
    assert address.has(address.host) and "@" not in address.prefix


def test_one_registry_by_several_names() -> None:
    address = parse_registry_url("https://Registry.example")
    assert all(address.has(host) for host in ("registry.example", "registry.example:443", "REGISTRY.EXAMPLE"))
    for other in ("registry.example:80", "registry.example.evil", "evil.registry.example", "registry.example:4430"):
        assert not address.has(other)
    assert parse_registry_url("http://registry.example").has("registry.example:80")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"url": "ftp://x"}, "url"),
        ({"password": None}, "password"),
        ({"username": None}, "username"),
        ({"username": "a:b"}, "username"),
        ({"username": ""}, "username"),
        ({"password": "a\nb"}, "password"),
        ({"password": "p" * 5000}, "password"),
        ({"auth_type": "AWS_ROLE"}, "auth_type"),
        ({"auth_type": "NONE"}, "auth_type"),
        ({"aws_role_arn": "arn:aws:iam::1:role/x"}, "aws_role_arn"),
    ],
)
def test_what_a_registry_cannot_be(fields: dict[str, str | None], field: str) -> None:
    good = CreateRegistry(name="internal", url="registry.example", username="robot", password="secret-word")
    check_registry(good)
    with pytest.raises(ValidationError) as raised:
        check_registry(attrs.evolve(good, **fields))
    assert raised.value.field == field
    assert "secret-word" not in str(raised.value)


def test_a_stored_password_stays_with_its_host() -> None:
    for url in ("registry.example:5000", "https://registry.example:5000/other", "https://REGISTRY.example:5000"):
        assert changed(MINE, UpdateRegistry(url=url), has_password=True).url == url
    for url in ("registry.example", "http://registry.example:5000", "evil.example:5000"):
        with pytest.raises(ValidationError) as raised:
            changed(MINE, UpdateRegistry(url=url), has_password=True)
        assert raised.value.field == "password"
        assert changed(MINE, UpdateRegistry(url=url, password="again"), has_password=True).url == url
        anonymous = attrs.evolve(MINE, username=None)
        assert changed(anonymous, UpdateRegistry(url=url), has_password=False).url == url


def test_a_login_comes_whole() -> None:
    anonymous = attrs.evolve(MINE, username=None)
    for change, field in ((UpdateRegistry(username="u"), "password"), (UpdateRegistry(password="p"), "username")):
        with pytest.raises(ValidationError) as raised:
            changed(anonymous, change, has_password=False)
        assert raised.value.field == field
    both = changed(anonymous, UpdateRegistry(username="u", password="p", name="new"), has_password=False)
    assert (both.username, both.name) == ("u", "new")


def test_passwords_do_not_show() -> None:
    create = CreateRegistry(name="n", url="u", username="x", password="secret-word")
    for value in (create, UpdateRegistry(password="secret-word"), RegistryLogin(MINE, "secret-word")):
        assert "secret-word" not in repr(value)


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("ghcr.io/team", "GHCR"),
        ("https://123456789012.dkr.ecr.eu-west-1.amazonaws.com", "ECR"),
        ("europe-docker.pkg.dev/project", "GAR"),
        ("eu.gcr.io", "GAR"),
        ("https://index.docker.io/v1/", "DOCKER_HUB"),
        ("demo.goharbor.io", "HARBOR"),
        ("127.0.0.1:5000", "DOCKER_REGISTRY"),
    ],
)
def test_providers(url: str, provider: str) -> None:
    assert provider_of(url) == provider


@given(st.integers(0, 10**17))
def test_cursors_go_round(place: int) -> None:
    assert cursor_start(cursor_after(place)) == place


@given(st.text(max_size=30))
def test_what_is_no_cursor(text: str) -> None:
    try:
        place = cursor_start(text)
    except ValidationError as error:
        assert error.field == "cursor"
    else:
        assert cursor_after(place) == text


def test_requests_go_round() -> None:
    create = CreateRegistry(name="n", url="u.example", username="x", password="y", auth_type="DOCKER_CONFIG")
    assert create_registry_from_json(create_registry_to_json(create)) == create
    change = UpdateRegistry(name="m", password="z")
    assert update_registry_to_json(change) == {"name": "m", "password": "z"}
    assert update_registry_from_json(update_registry_to_json(change)) == change
    told = attrs.evolve(create, tenant="acme", by="key")
    assert set(create_registry_to_json(told)) == {"name", "url", "username", "password", "auth_type"}
    assert list_registries_to_query(ListRegistries(limit=3, tenant="acme")) == {"limit": 3}


def test_answers_go_round() -> None:
    assert registry_from_json(registry_to_json(MINE)) == MINE
    for page in (RegistryPage((MINE,), "abc"), RegistryPage((), None, 7)):
        assert registry_page_from_json(registry_page_to_json(page)) == page
    assert registry_page_from_json({"registries": [{"name": "old", "password": 5}]}).items[0].name == "old"
    for odd in (None, [], {"items": 3, "next_cursor": 4, "offset": "x"}):
        assert registry_page_from_json(odd) == RegistryPage(())
    assert registry_from_json("odd") == Registry(id="", name="", url="")


@pytest.mark.parametrize("body", [None, [], {}, {"name": 1, "url": "u"}, {"name": "", "url": "u"}, {"name": "n"}])
def test_bodies_that_are_refused(body: object) -> None:
    with pytest.raises(ValidationError):
        create_registry_from_json(body)
