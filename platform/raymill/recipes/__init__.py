"""Recipes: one kind of training each, built from models, losses and evaluations."""
