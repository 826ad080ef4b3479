"""Procedural worlds with questions whose answers are known: pictures, clips with sound, facts, and texts."""
