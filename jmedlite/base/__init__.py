"""What every part shares: errors, the GGUF format, the native libraries, output files. Imports nothing above it."""
