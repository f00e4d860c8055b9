"""Models of concepts: vectors of sentences (Large Concept Models, arXiv 2412.08821)."""
