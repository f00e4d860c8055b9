"""The chat page: HTML, style and script that become one file."""
