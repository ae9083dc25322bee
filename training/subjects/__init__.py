"""Subject folders: voxels, trials, regions and images, and what fills them."""
