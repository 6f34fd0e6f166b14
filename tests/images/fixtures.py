"""Images and registries for all tests; a top-level conftest registers them through ``pytest_plugins``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.catalogue import RECIPES, Catalogue
from tests.images.registry import Registry, running_registry


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Images as OCI layouts; kept between runs in the folder that ``SANDBOXRT_TEST_CACHE`` names."""
    told = os.environ.get("SANDBOXRT_TEST_CACHE", "").strip()
    folder = Path(told) if told else tmp_path_factory.mktemp("images")
    folder.mkdir(parents=True, exist_ok=True)
    return Catalogue(folder)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> Iterator[Registry]:
    """A plain registry with every image of the catalogue, as ``NAME:TAG`` and as docker.io's ``library/NAME:TAG``."""
    with running_registry(tmp_path_factory.mktemp("registry")) as found:
        for name, recipe in RECIPES.items():
            for repository in (recipe.repository, name.partition(":")[0]):
                found.push(catalogue.layout(name), recipe.tag, f"{repository}:{recipe.tag}")
        yield found


@pytest.fixture(scope="session")
def tls_registry(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> Iterator[Registry]:
    """A registry with ``tiny:1`` and a certificate by a CA that only ``certs_dir`` knows."""
    with running_registry(tmp_path_factory.mktemp("tls-registry"), tls=True) as found:
        found.push(catalogue.layout("tiny:1"), "1", "tiny:1")
        yield found


@pytest.fixture(scope="session")
def password_registry(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> Iterator[Registry]:
    """A plain registry with ``tiny:1`` that wants a user name and a password."""
    with running_registry(tmp_path_factory.mktemp("password-registry"), password=True) as found:
        found.push(catalogue.layout("tiny:1"), "1", "tiny:1")
        yield found


@pytest.fixture
def readme_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Makes the README's short names (``python:3.12-slim``) mean the images of the plain registry."""
    monkeypatch.setenv("SANDBOXRT_REGISTRIES_CONF", str(registry.registries_conf))
    return registry
