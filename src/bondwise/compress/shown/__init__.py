"""What a model is shown: the user's batches, what it draws itself, what enters its blocks."""
