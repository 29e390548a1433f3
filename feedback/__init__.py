"""Who judges: a core (core/) and wings that hold the kinds of source."""
