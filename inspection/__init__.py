"""Looking at what a run wrote: tables, pages and pictures of labels, datasets and clips."""
