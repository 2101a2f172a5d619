"""The report of a model that hears pitch."""
