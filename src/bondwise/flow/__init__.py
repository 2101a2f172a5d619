"""Data through a model: batches, text, blocks, and what enters each of them."""
