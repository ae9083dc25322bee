"""Reconstruction: predicted embeddings to pictures, and how like the seen ones they are."""
