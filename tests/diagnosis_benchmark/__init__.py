"""How often the diagnosis is right, how early, and whether what it advises helps: `make benchmark-diagnosis`."""
