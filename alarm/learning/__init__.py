"""Supervised training of policies and reward models."""
