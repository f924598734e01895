"""Attacks that climb along the gradient inside the threat model."""
