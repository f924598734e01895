"""Detection: what a detector is worth against attackers who know more and more of it."""
