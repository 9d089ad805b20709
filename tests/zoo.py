"""Every block of the library, for programs that run in a process of their own."""

# Names of `repq_tf.layers`, with options besides the filters.
BLOCKS = {
    "ACBlock": {},
    "CSLABlock": {"trainable_scales": True},
    "ConvBNBlock": {},
    "ConvBlock": {},
    "DiracConv": {},
    "DiverseBranchBlock": {},
    "ECB": {"identity": True},
    "ExpandNet": {"rate": 2},
    "MobileOneBlock": {"branches": 2},
    "OREPABlock": {},
    "OREPARepVGGBlock": {},
    "OREPAStem": {"kernel_size": 5},
    "QARepVGGBlock": {},
    "RepVGGBlock": {"custom_l2": 1e-4, "oabn_k": 2.0},
    "WeightNormConv": {},
}
