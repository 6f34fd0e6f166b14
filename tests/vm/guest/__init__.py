"""What runs inside of a guest: checks of what a sandbox promises, each with the figure that was seen."""
