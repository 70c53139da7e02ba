"""The kernel witness: guests, their agent, and what they are asked. Tests that need a guest skip where there is none."""
