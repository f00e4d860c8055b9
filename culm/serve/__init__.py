"""A model as a service: without transport in `service`, over HTTP, and at the terminal."""
