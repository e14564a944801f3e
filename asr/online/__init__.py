"""Code that runs where there is a network: sources, preparation, model download."""
