"""One file is one merge method; discovered, never listed by hand."""
