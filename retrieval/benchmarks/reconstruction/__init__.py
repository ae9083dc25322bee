"""How like the seen pictures reconstructions are: eight image metrics, and the brain's answer."""
