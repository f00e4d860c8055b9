"""A model that answers with tools: the loop, its models, approvals and MCP servers."""
