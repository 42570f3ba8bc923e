"""Trainers: who steps them, when a step is committed, and what it does to the parameters."""
