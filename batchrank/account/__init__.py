"""One limit for many workers: the coordinator, and leases of shares."""
