"""Where work runs: the devices of this machine and its groups of processes."""
