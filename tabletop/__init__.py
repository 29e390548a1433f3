"""A simulated tabletop: captions, scenes, renderer, and a physics check that reads clips from their pixels."""
