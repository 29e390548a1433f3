"""Online fine-tuning: a frozen judge's answers, differentiated into the generator."""
