"""Matches between trained agents, and what they look like."""
