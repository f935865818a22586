"""Folders of an encoder that others load by name, in the layouts of timm and transformers on the Hugging Face Hub.

NumPy and JSON alone: neither timm nor transformers is imported. The other direction, from published names to ours, is
:mod:`ehm.models.published`.
"""
