"""What an answer is worth: reward functions and verifiers, called so that none can hurt the run."""
