"""The host's side of a running guest: protocol, QEMU, and evidence of how a guest ended."""
