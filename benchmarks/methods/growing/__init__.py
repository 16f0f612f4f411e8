"""Methods with parts of a network, or more of it, for each task; each is a file of its own."""
