"""Frozen image encoders: pictures to embeddings."""
