"""The runtime of one machine: who owns which task."""
