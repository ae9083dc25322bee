"""The release of the Natural Scenes Dataset, as downloaded, and what makes a subject of it."""
