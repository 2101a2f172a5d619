"""Which format each weight gets: candidates, a survey of the model, one budget."""
