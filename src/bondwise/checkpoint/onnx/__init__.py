"""A model as one ONNX file: what it takes, how its layers run there, and numbers that agree."""
