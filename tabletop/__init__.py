"""A simulated tabletop as a plug-in: captions, scenes, renderer, a physics check from pixels, and its own models."""
