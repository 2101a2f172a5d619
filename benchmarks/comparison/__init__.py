"""What the quality benchmark is made of: methods, models, cells of results, and the page."""
