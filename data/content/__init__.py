"""What things are by content: files and folders, the code behind a dotted name, the commit behind a branch."""
