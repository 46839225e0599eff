"""Scores with confidence: judges, statistics, response files."""
