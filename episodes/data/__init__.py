"""Image data sets by name, and their split into base, validation and novel classes."""
