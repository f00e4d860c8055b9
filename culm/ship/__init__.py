"""A finished model leaves Culm: files for other programs and services, and the Hugging Face hub."""
