"""Threat models: which images an attacker may hand in."""
