"""Networks and their parts, and the loading of their weights."""
