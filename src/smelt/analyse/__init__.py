"""Tables first, plots second."""
