"""Tables that people write: as spreadsheets save them, and each with its columns."""
