"""YAML in, frozen checked recipe out. No torch, no files of weights."""
