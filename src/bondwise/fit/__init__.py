"""A weight, a network and a metric give cores."""
