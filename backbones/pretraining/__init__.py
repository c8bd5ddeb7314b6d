"""Supervised pretraining of a backbone on base classes."""
