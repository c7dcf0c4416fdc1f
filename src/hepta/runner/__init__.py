"""Recipes: ordered stages, each skipped when it is done."""
