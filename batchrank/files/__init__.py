"""Where bytes lie: local and remote paths, and files that are whole or not there."""
