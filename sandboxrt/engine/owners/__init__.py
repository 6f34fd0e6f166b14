"""Gives the files of a sandbox at rest to another block of ids."""
