"""The ``sandboxrt`` command.

Exit codes are those that people know from container tools: the command's own; 124 when ``--timeout`` ended it; 125 when
sandboxrt itself failed; 130 after Ctrl-C; 2 for wrong arguments.
"""

from __future__ import annotations

import click

from sandboxrt._version import __version__
from sandboxrt.cli.backup import backup, restore
from sandboxrt.cli.doctor import doctor
from sandboxrt.cli.keys import keys
from sandboxrt.cli.prune import prune
from sandboxrt.cli.rescue import rescue
from sandboxrt.cli.run import run
from sandboxrt.cli.serve import serve
from sandboxrt.cli.snapshot import snapshot

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sandboxrt")
def main() -> None:
    """Run code that you do not trust in isolated sandboxes on this machine."""


main.add_command(run)
main.add_command(doctor)
main.add_command(serve)
main.add_command(keys)
main.add_command(snapshot)
main.add_command(backup)
main.add_command(restore)
main.add_command(prune)
main.add_command(rescue)
