"""Compose models while they run: hidden-state mixing inside one ordinary transformers model."""
