"""Attacks made of attacks: cascades, transfer, one perturbation for all images."""
