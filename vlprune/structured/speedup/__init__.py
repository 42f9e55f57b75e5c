"""A speed-up named in advance: what layers cost, what to remove for it, and what then comes out."""
