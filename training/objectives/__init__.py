"""What a model is trained to do: its losses, and the score of its validation images."""
