"""What `align bench rollout`, `train` and `eval` measure with: ours, the plain way and peers, on the same weights."""
