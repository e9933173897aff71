"""Score millions of (query, candidates) rows through a rerank API, resumably, within its limits."""

__version__ = "0.1.0"
