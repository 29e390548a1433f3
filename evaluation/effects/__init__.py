"""What accept rates do not show of a policy: diversity, motion, drift, reasons, and prompts that got worse."""
