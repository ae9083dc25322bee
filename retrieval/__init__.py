"""Index and queries to results: search, benchmarks, gallery, demo."""
