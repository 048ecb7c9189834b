# SPDX-License-Identifier: Apache-2.0
"""What ties the operators to models: the only place that imports transformers.

`import hired_kernels` never imports this package; whoever needs a model does, by name.
"""
