"""Measurements of the speed and memory of training and generation."""
