"""Pictures of what a model has learned: its hierarchies, its masks, its attention. No framework inside."""
