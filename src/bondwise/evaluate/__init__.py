"""What compression cost: perplexity, divergence from the teacher, agreement, similarity ratings."""
