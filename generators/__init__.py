"""What makes videos: one interface (core/), one file a family (families/)."""
