"""The first process of a container, and the host's end of its socket."""
