"""The way from outside to HTTP services and files inside of sandboxes, for whoever has a token.

It stands beside the API, not behind it: it takes no API keys, and what it serves was made by the programs in sandboxes.
``serve`` puts it before its own application (``sandboxrt/server/services.py``); an embedded client gives it a loopback
port of its own (``listener.py``).

From outside in: ``gateway.py`` finds out who is asked for, ``visitors.py`` who may; ``exchange.py`` carries a request
in and its answer out, ``downloads.py`` sends files; ``front.py`` is the client's connection, ``headers.py`` says what
changes on the way. ``links.py`` makes the tokens and addresses.

Source: protocol.md §2.6, §2.7, §6.
"""
