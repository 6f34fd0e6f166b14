"""The asyncio client, generated from the trio one."""
