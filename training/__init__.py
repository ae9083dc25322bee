"""Voxels to embeddings: subjects, targets, models, training, prediction (torch)."""
