"""The service over HTTP: OpenAI's API and a chat page."""
