"""The modules that hold networks: what they store, and how they run."""
