# benchmarks/synth/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""What synthetic.py writes: the sizes, their files in each form, and the noise in them.

`shapes` knows the sizes, `gguf_file` lists their tensors and `directory` renames those
to what the Hugging Face checkpoints hold; `noise` fills both, `saving` writes them.
"""
