"""The ``sandboxrt`` command."""
