"""Real kernels as guests: from Debian sources to a kernel, a module, an initrd and a manifest of what went in."""
