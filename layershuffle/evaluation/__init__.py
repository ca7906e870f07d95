"""Scoring models in many orders."""
