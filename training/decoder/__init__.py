"""Decoders that are trained here: embeddings to pictures, by flow matching on a lab's images."""
