"""What gives the scores of the local server."""
