from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for all acceptance tests, so that what is prepared once (disk templates) is prepared once."""
    return tmp_path_factory.mktemp("state")
