"""`graftkit init`: a model is looked at, and a recipe is drafted that applies to it as it stands."""
