"""What people type: `vfrl COMMAND`. Each command is a module with `main`, imported when it is called."""
