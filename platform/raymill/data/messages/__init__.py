"""Conversations: reading, templates, encoding, and the preparation of everything made of messages."""
