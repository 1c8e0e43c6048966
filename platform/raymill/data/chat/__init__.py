"""Conversations for supervised fine-tuning: read, rendered by a chat template, encoded with what is learned."""
