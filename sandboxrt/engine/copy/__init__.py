"""The copying of what sandboxes wrote, and of layers, into new layers."""
