"""Judges behind a network interface: providers, batches, prices, pace and the ledger of answers."""
