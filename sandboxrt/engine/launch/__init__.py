"""The launcher: a static C program that prepares a private mount namespace and executes the OCI runtime in it."""
