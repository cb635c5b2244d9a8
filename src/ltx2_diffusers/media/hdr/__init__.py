"""High dynamic range: the curves of signals, frames from a video decoder, and the files that hold them."""
