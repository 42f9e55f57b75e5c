"""`linear24` on CUDA tensors: the ways to compute it, what is measured of them, and which one runs."""
