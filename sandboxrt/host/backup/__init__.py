"""Backups of state folders: one file with all that counts, made while the folder is in use, and put back elsewhere."""
