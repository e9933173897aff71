"""One run from start to receipt: what is left to send, what is published, what is told."""
