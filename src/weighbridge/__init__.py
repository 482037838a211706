"""Weighbridge: the scale for machine-learning models."""
