"""Lists of all users at once, under budgets of places: integer programs, prices, repair, certificate."""
