"""Scores and grades: reports, baselines, retention, scaling, and the benchmark."""
