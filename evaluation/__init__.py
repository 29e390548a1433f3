"""Results with intervals, and how far judges can be trusted; from rows and labels, FVD and the like from videos."""
