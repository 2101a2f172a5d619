"""What a tensor network is; no torch here."""
