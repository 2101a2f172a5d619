"""Models that are no Hugging Face folder: code that makes one, and exported programs."""
