"""The board's page: HTML, style and script that become one file."""
