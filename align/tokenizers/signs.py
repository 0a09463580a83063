"""What tells the tokenizers' files apart."""

# kind -> a tensor that its files have, and no others
SIGNS = {
    "vq": "encoder.conv_blocks.0.res.0.conv1.weight",
    "multiscale-vq": "encoder.down.0.block.0.conv1.weight",
    "bsq": "encoder.conv_in.conv.weight",
}
