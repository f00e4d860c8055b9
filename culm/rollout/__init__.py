"""On-policy batches: the model answers, a reward scores, the objective learns from it."""
