"""The training objectives, each as a plain function."""
