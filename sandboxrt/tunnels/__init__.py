"""What both ends of a tunnel have in common: streams over one connection, and connections that are made anew."""
