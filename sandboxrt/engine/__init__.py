"""Where commands really run."""
