"""What the error of a weight does to the model: measured, and put on a curve."""
