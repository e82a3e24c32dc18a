"""Training and validation of the zoo's models: recipes, data, the loop, checkpoints, reports."""
