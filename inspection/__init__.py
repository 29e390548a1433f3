"""What people look at and hand on from a shell: tables of clips, folders for the Hub, the state of a machine."""
