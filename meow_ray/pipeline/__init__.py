"""The stages as a graph: which of them run, in which order, and on which inputs."""
