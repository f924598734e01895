"""How the attacked model is run: eval mode, checked input, faster copies."""
