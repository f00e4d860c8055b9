"""The model behind an OpenAI-compatible API and a chat page, and at the terminal."""
