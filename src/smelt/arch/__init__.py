"""Tensor names and config -> layers, roles, ties. Reads headers only."""
