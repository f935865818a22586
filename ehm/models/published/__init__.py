"""Published weights: from the names in files of authors and of Hugging Face to timm's parameter names, which are ours.

No framework here, and nothing in a file is executed.
"""

from ehm.models.published.facts import Published, PublishedFacts
from ehm.models.published.table import LAYOUTS, convert_to_timm

__all__ = ["LAYOUTS", "Published", "PublishedFacts", "convert_to_timm"]
