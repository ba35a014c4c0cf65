"""Answers of models to questions, and what becomes of them."""
