"""What was reached, with intervals, and how far judges can be believed. Reads clip rows and label tables only."""
