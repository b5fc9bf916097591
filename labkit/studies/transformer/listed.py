"""The studies of transformers. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["TRANSFORMER"]

TRANSFORMER: tuple[Study, ...] = (
    Study(
        "ibert-sentences",
        "A pretrained sentence encoder in integers only",
        "I-BERT: Kim et al., *I-BERT: Integer-only BERT Quantization* (ICML 2021), table 1, the error of i-exp and the mean GLUE "
        "scores of RoBERTa",
        "All of inference in integers, with polynomials of second degree for GELU and softmax and an integer square root for "
        "LayerNorm: RoBERTa base goes from 86.0 to 86.3, large from 89.0 to 89.5. i-GELU is off by 0.018 at most and 0.0082 in "
        "the mean square on [-4, 4], i-exp by 0.0019.",
        "labkit.studies.transformer.sentences",
        14,
        ("stsb",),
    ),
)
