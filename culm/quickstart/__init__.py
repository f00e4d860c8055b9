"""One command from raw text to a model that answers: stages, summary, report."""
