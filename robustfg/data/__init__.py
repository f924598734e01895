"""Data: sources, exact loaders, the built-in data sets."""
