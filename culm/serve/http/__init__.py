"""The service over HTTP, in the shapes of OpenAI's API, with a chat page."""
