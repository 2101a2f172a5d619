"""Hosts: which matrix a kind of module applies, to what, and how terms take its place."""
