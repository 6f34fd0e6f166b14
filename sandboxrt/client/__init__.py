"""The trio client: what the blocking and asyncio ones are generated from."""
