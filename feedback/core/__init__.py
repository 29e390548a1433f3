"""What every judge shares: sources, rubrics, labels, answers and the table of kinds."""
