"""The small model that comes with the package: its picture world, its training recipe, its weights."""
