"""``python -m sandboxrt`` is the ``sandboxrt`` command."""

from __future__ import annotations

from sandboxrt.cli import main

if __name__ == "__main__":
    main(prog_name="sandboxrt")
