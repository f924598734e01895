"""Random numbers as a function of what they are for, never of batch, order, rank or device."""
