"""The samples under attack: which are still active, and the best image of each."""
