"""Judges that run in this process or are people: VLMs, physics, panels, people's ratings."""
