"""The command `meow`."""
