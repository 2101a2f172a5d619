"""Further kinds of candidates: of convolutions, and with columns beside a network."""
