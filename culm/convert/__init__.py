"""Models in other formats, both ways: one file a format."""
