"""From blocking and asyncio callers into trio: the only part of sandboxrt with a thread of its own.

``runtime`` is that thread; ``portal`` is what it does for one client, with a ``call`` for each call and an ``entry``
for each block; ``blocking`` and ``loops`` are the two kinds of callers. The generated façades in ``sandboxrt.sync``
and ``sandboxrt.aio`` are all that uses them. docs/facades.md has the rules that they keep.
"""
