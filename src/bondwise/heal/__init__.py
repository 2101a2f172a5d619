"""How a model is healed: the lost quality back by distillation."""
