#!/usr/bin/env bash
# Sets up a fresh machine and runs the main job once, saying what it does: the README's first command.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup_system.sh
. tools/venv.sh
make_venv .venv
.venv/bin/python -m pip install --quiet -e .
exec .venv/bin/python tools/quickstart.py
