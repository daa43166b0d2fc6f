"""Training: recipes, the loop, and the folder that a run leaves behind."""
