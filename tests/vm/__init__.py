"""Debian machines of our own, in software emulation: what holds on stock kernels with systemd and control groups v2.

``python -m tests.vm`` boots them, installs the project there as a user would, and runs the checks of
``tests/vm/guest/`` inside; ``nox -s vm`` is the chore. Nothing here is collected as a test but the tests of this
machinery itself.
"""
