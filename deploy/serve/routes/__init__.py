"""Routes and the formats of their requests and answers."""
