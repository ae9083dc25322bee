"""The networks: backbone, projector, prior, and the model they make up."""
