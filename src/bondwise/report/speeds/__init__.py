"""Speeds as tables for a terminal: of models, and of exported files."""
