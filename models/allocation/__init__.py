"""Lists of all users at once, under budgets of places."""
