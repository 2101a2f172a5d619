"""How fast layers are: a grid of weights and networks, ours and peers' layers, one clock."""
