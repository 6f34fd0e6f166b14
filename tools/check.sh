#!/usr/bin/env bash
# Sets up a fresh machine for development and passes every check and test: the README's second command.
# Arguments go to nox, e.g. `tools/check.sh -s lint`.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup_system.sh --test
. tools/venv.sh
make_venv .venv-dev
.venv-dev/bin/python -m pip install --quiet --upgrade 'nox>=2025.2.9' uv

# Some tests start interpreters of every supported version; take what is installed, fetch what is not.
for version in 3.11 3.12 3.13; do
    if ! find_python "$version" >/dev/null; then
        echo "check: Python $version is missing; fetching it"
        .venv-dev/bin/uv python install --quiet "$version"
    fi
done

exec .venv-dev/bin/python -m nox "$@"
