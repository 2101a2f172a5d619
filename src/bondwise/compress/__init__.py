"""From a dense model to tensor networks: fit, refine, swap, write."""
