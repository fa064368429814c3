"""One way to generate text a file; all give the same greedy text and obey budgets exactly."""
