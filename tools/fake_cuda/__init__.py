"""CUDA code paths on a machine without a GPU: fake tensors on `cuda:0`, and a fake process group of any size.

Whole steps of the published sizes run through the project's code in seconds and without memory, because a fake tensor
has a shape, a dtype and a device, and no values. `device` makes torch believe in a GPU, `watchdog` looks at every
operation, `ranks` gives the mesh of any rank of any world, `published` builds the published modules, and `cases` runs
parts of the project on them. `tests/cuda` and `tools/fake_cuda_run.py` use all of it.

What is found: tensors of the CPU and the GPU in one operation; products, convolutions, norms and attention of mixed
dtypes; waits for the GPU; half precision where float32 is needed; shapes that a kernel refuses; collectives whose sizes
do not fit; the most bytes of tensors at once.

What is not found: wrong values, the order of streams, deadlocks (a fake collective returns at once), sizes that differ
between ranks (a fake collective sees its own rank only), workspaces inside kernels, fragments.
"""
