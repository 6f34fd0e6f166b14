"""Programs that drive one client each, told by lines of JSON what to do, so that both pay the same for being told."""
