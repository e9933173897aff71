"""Finished rows as part files, the receipt, and what is said at the end of a run."""
