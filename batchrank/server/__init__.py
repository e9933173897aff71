"""The local rerank API, which speaks as Model Studio does; it knows the core and nothing else."""
