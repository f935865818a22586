"""One learner for each kind of training with torch."""
