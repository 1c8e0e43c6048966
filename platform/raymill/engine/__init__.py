"""DeepSpeed behind one door, and the one training loop."""
