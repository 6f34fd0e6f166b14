"""Every chore of the project, by name: ``nox -l`` lists them, ``nox`` alone runs what CI runs."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "facades", "docs", "test"]
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")


def _install(session: nox.Session, *groups: str, package: bool = True) -> None:
    requirements = [line for group in groups for line in nox.project.dependency_groups(PROJECT, group)]
    session.install("--quiet", *requirements, *(["-e", "."] if package else []))


@nox.session
def fmt(session: nox.Session) -> None:
    """Format the tree and fix what can be fixed by itself."""
    _install(session, "lint", package=False)
    session.run("ruff", "check", "--fix", ".")
    session.run("ruff", "format", ".")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    _install(session, "lint", package=False)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: mypy strict over the package, pyright's completeness of what users import."""
    _install(session, "lint", "test")
    session.run("mypy")
    session.run("mypy", "tests/facades/typed_use.py")
    session.run("pyright", "--verifytypes", "sandboxrt", "--ignoreexternal")


@nox.session
def facades(session: nox.Session) -> None:
    """Check that the blocking and asyncio clients are what the trio one's source makes them."""
    session.run("python", "tools/gen_facades.py", "--check")


@nox.session
def test(session: nox.Session) -> None:
    """Run every test, real containers included (root; ``-- -m 'not container'`` leaves those out)."""
    _install(session, "test")
    session.run("python", "tools/run_tests.py", *session.posargs)


@nox.session
def vm(session: nox.Session) -> None:
    """Try the tree on a stock Debian in emulation (root; ``-- --long``: two Debians and the suites, some hours)."""
    session.install("--quiet", "attrs", "platformdirs", "pip", "uv")
    session.run("python", "-m", "tests.vm", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure everything side by side and write docs/benchmarks.md (root, some minutes, a quiet machine)."""
    _install(session)
    session.run("python", "-m", "benchmarks", *(session.posargs or ["--write"]))


@nox.session
def docs(session: nox.Session) -> None:
    """Check that every path and link that the documents name is there."""
    session.run("python", "tools/check_docs.py")


@nox.session
def changelog(session: nox.Session) -> None:
    """Show the next release's section; ``-- --version X.Y.Z`` writes it and removes the fragments."""
    _install(session, "changelog", package=False)
    session.run("towncrier", "build", *(session.posargs or ["--draft", "--version", "next"]), "--yes")
