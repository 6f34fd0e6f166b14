"""The server: hosts over HTTP and WebSockets, in the protocol of the LangSmith Sandbox API."""
