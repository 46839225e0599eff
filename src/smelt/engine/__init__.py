"""Plan and execute merges: the only room that moves tensors."""
