"""Attacks that need no gradient of the model."""
