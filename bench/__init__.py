"""Measurements anyone can repeat from the repository root: speed, memory, parity with a peer, exactness."""
