"""What is written and read: safetensors and JSON, and the door to transformers."""
