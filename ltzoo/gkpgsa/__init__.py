"""GKP/GSA: grouped knowledge preservation and grouped sharpness-aware minimisation."""
