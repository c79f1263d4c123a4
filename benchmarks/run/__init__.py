"""A run: every model asked every question, what each costs, and the folder that keeps it."""
