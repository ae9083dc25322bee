"""The noise schedule and the samplers of the diffusion prior."""
