"""Functions that a model may call: Python, SQL, search; one file each, without any model."""
