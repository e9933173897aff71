"""One request after another: the client, what replies mean, retries."""
