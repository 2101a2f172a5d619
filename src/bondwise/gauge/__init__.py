"""Canonical forms, and storage without the gauge."""
