"""Pure maths on arrays: expressions, compiled kernels, streaming statistics. No files, no model names."""
