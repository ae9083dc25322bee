"""Embeddings to index: plan, build, verify (numpy, pyarrow, faiss; never torch)."""
