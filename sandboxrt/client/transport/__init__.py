"""How the client reaches a host: in this process, or over the wire."""
