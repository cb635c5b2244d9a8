"""What requests bring: base64 in, files without loss out, read in processes of their own."""
