"""The training loop, and DeepSpeed behind the interface of a trainer."""
