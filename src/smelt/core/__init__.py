"""Words everyone shares: errors, the method registry, small types. Standard library only."""
