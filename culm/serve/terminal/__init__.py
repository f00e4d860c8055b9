"""A chat at the terminal, with a model in this process or of a server."""
