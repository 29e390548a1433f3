"""Code that all judges share: sources, rubrics, labels, answers and the table of kinds."""
