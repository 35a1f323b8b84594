"""Things that act and learn: agents, their memory, the loops that train them, the run folder."""
