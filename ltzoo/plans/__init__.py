"""Plans: many trainings, several at once, their table, and the way to another machine and back."""
