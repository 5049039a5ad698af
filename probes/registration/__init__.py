"""Registration of pairs of images by features: arrays in, arrays out.

Grids are (Z, Y, X) or (Y, X); stacks of features (channels, *grid); a displacement is
(axes, *grid), in voxels: what stands at x is found at x + u(x) in the moving image. The steps in
their order:

- `pca`: features of patches, as channels of a grid that both images share.
- `mind`: MIND-SSC, channels of the image itself.
- `convexadam`: a displacement from two stacks, nothing trained.
- `voxelmorph`: a displacement by a network that other pairs trained.
- `displacement`: what is warped by one, and how regular it is.

Nothing is imported here: some of it needs torch.
"""
