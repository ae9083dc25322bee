"""Confidence: how probable it is that a search found the image that was seen."""
