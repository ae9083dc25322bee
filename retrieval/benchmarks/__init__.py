"""How often is the right image found: n-way identification, both ways, with its uncertainty."""
