"""``sandboxrt serve`` with arguments that cannot be: each refusal names the value and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sandboxrt.cli import main
from tests.rootless import as_user
from tests.serving import serving


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--port", "99999"), 2, ("99999", "65535")),
        (("--public-url", "https://[::1"), 1, ("'https://[::1'", "https://sandboxes.example.com")),
        (("--public-url", "http://x:99999"), 1, ("'http://x:99999'",)),
        (("--public-url", "ftp://x"), 1, ("'ftp://x'",)),
        (("--public-url", "http://u:p@x"), 1, ("--public-url",)),
        (("--public-url", "http://x/?a=1"), 1, ("--public-url",)),
        (("--host", "0.0.0.0"), 1, ("0.0.0.0", "--certfile", "--insecure-http")),
        (("--host", "0.0.0.0", "--insecure-http", "--insecure-no-auth"), 1, ("0.0.0.0", "keys create")),
        (("--host", "192.0.2.1", "--insecure-http"), 1, ("192.0.2.1", "Cannot listen")),
        (("--host", "not-a-host.invalid"), 1, ("'not-a-host.invalid'", "cannot be resolved", "127.0.0.1")),
        (("--certfile", __file__), 1, ("private key",)),
        (("--certfile", __file__, "--keyfile", __file__), 1, (__file__, "PEM")),
        (("--certfile", "/nowhere.pem"), 2, ("/nowhere.pem",)),
        (("--runtime", "nope"), 1, ("'nope'", "not installed")),
        (("--runtime", "/nowhere/crun"), 1, ("'/nowhere/crun'", "not installed")),
        (("--max-memory", "lots"), 2, ("'lots'", "512m")),
        (("--max-requests", "0"), 2, ("--max-requests",)),
    ],
)
def test_refusals(tmp_path: Path, arguments: tuple[str, ...], status: int, words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["serve", "--port", "0", "--state-dir", str(tmp_path), *arguments])
    assert result.exit_code == status, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["serve", "--port", port, "--state-dir", str(tmp_path)])
    assert result.exit_code == 1 and port in result.output and "in use" in result.output


@pytest.mark.container
def test_a_default_snapshot_that_does_not_exist_yet(tmp_path: Path) -> None:
    with serving(tmp_path, "--default-snapshot", "nope"):
        log = (tmp_path / "server.log").read_text()
        assert "the default snapshot 'nope' does not exist yet" in log
        assert "sandboxrt snapshot import" in log
    (tmp_path / "server.log").unlink()
    with serving(tmp_path):
        assert "default snapshot" not in (tmp_path / "server.log").read_text(), "nothing to say of the built-in one"


SERVE = """
import sys
from sandboxrt.cli import main
main(["serve", "--port", "0", "--insecure-no-auth", "--state-dir", sys.argv[1]])
"""


@pytest.mark.container
def test_a_user_for_whom_no_sandbox_can_run_is_told_at_the_start(tmp_path: Path) -> None:
    done = as_user(tmp_path, "", SERVE, str(tmp_path / "state"))
    assert done.returncode == 1
    assert "sandboxes cannot run here: stranger has no subordinate ids" in done.stderr
    assert "sudo usermod --add-subuids" in done.stderr
    assert "serves" not in done.stderr
    assert "Traceback" not in done.stderr
