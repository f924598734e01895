"""From the command line to objects: config, trust, errors, the run's folder."""
