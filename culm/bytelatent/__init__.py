"""Models of bytes, which read patches of them."""
