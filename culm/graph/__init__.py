"""Points for the nodes of a graph (arXiv 1705.08039), learned by the one loop."""
