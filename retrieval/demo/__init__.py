"""The main job end to end: pictures, brain, training, index, search, benchmark, gallery."""
