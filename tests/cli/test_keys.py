"""``sandboxrt keys`` as somebody new to it uses it, with mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sandboxrt.cli import main


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments])


def test_a_key_from_its_making_to_its_end(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    made = keys("create", "--tenant", "acme", "--label", "a laptop", *state)
    secret = made.stdout.strip()
    assert made.exit_code == 0 and secret.startswith("srt_")
    listed = keys("list", "--json", *state)
    (entry,) = json.loads(listed.stdout)
    assert (entry["tenant"], entry["label"], entry["revoked_at"]) == ("acme", "a laptop", None)
    table = keys("list", *state)
    for output in (listed.output, table.output):
        assert secret not in output and secret.rpartition("_")[2] not in output
    stored = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir() if path.is_file())
    assert secret.encode() not in stored
    # The whole key in place of its id works, and its secret is not repeated.
    revoked = keys("revoke", secret, *state)
    assert (revoked.exit_code, revoked.stdout) == (0, f"revoked {entry['id']}\n")
    assert keys("revoke", entry["id"], *state).exit_code == 0
    (entry,) = json.loads(keys("list", "--json", *state).stdout)
    assert entry["revoked_at"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("create", "--tenant", "a/b"), 1, ("'a/b'", "letters")),
        (("create", "--tenant", ""), 1, ("''", "1 to 63")),
        (("create", "--label", "x" * 201), 1, ("200",)),
        (("revoke", "zzz"), 1, ("'zzz'", "keys list")),
        (("revoke",), 2, ("ID",)),
        (("delete",), 2, ("'delete'",)),
    ],
)
def test_mistakes_name_the_value_and_the_way_out(
    tmp_path: Path, arguments: tuple[str, ...], status: int, words: tuple[str, ...]
) -> None:
    state = ("--state-dir", str(tmp_path)) if arguments[0] != "delete" else ()
    result = keys(*arguments, *state)
    assert result.exit_code == status
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [("list",), ("revoke", "abc")])
def test_a_state_folder_that_is_not_there_is_not_made(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    missing = tmp_path / "typo"
    result = keys(*arguments, "--state-dir", str(missing))
    assert result.exit_code == 1 and str(missing) in result.output and "keys create" in result.output
    assert not missing.exists()


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    result = keys("create", "--state-dir", str(path))
    assert result.exit_code == 1 and str(path) in result.output and "another" in result.output


def test_quotas_of_a_key(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    secret = keys("create", "--max-sandboxes", "10", "--total-memory", "8g", *state).stdout.strip()
    (entry,) = json.loads(keys("list", "--json", *state).stdout)
    assert entry["quota"] == {"sandboxes": 10, "vcpus": None, "mem_bytes": 8 * 2**30, "storage_bytes": None}
    assert "sandboxes 10" in keys("list", *state).output
    # The whole key in place of its id works here, too.
    changed = keys("update", secret, "--total-cpus", "2.5", *state)
    assert changed.exit_code == 0 and "cpus 2.5" in changed.output and "sandboxes 10" in changed.output
    assert secret not in changed.output
    reset = keys("update", entry["id"], "--reset", *state)
    assert reset.exit_code == 0 and "as the server says" in reset.output
    nothing = keys("update", entry["id"], *state)
    assert nothing.exit_code == 2 and "--max-sandboxes" in nothing.output
    unknown = keys("update", "zzz", "--max-sandboxes", "1", *state)
    assert unknown.exit_code == 1 and "keys list" in unknown.output
