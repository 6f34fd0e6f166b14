"""The blocking client, generated from the trio one."""
