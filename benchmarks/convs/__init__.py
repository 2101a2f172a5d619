"""What the benchmark of convolutions is made of: models, methods, healing, clocks and its page."""
