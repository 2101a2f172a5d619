"""How fast a model runs, in what memory, and with how many multiplications."""
