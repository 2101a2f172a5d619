"""A model in pieces that run alone: blocks in a row, units, and what enters each."""
