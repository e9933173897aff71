"""Who owns an output folder, and the answers that are not in parts yet."""
