"""`culm route`: one address for several servers of one model."""
