"""When a request may go: rate, tokens, what a server's refusals teach, and the money left."""
