"""Convolutions: the metric of their patches, groups, and how errors fall with the ranks."""
