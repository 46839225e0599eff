"""Tables first, plots second: rows of figures in, one picture a file out."""
