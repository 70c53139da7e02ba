"""The real kernel as a witness: guests that are built and booted, and what they answer."""
