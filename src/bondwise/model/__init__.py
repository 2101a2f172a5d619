"""How a model is tensorized."""
