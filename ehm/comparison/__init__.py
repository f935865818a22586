"""Compare encoders on labelled images: those of runs and of others, and arms of a study that trains them over seeds."""
