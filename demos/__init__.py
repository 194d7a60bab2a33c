"""Trainings to watch: `heart` gets stuck by an honest mistake and can be rescued, `digits` is healthy."""
