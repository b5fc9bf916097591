"""The part of TFLite's schema that is read: names of operators and types, and where each option of an operator stands.

Numbers are those of ``tflite/schema/schema.fbs``.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ACTIVATIONS", "OPERATORS", "OPTIONS", "PADDINGS", "TYPES"]

OPERATORS = tuple(
    """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION
    LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH
    CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
    BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
    BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
    ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE
    EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR
    ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE
    RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND
    COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
    NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
    PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE
    HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE
    BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1
    UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR
    RIGHT_SHIFT
    """.split()
)
"""By number, the operators of the schema up to those of StableHLO."""

TYPES: Mapping[int, str] = {
    **{0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool", 7: "int16", 9: "int8"},
    **{10: "float64", 15: "uint32", 16: "uint16", 17: "int4"},
}
"""Types of tensors that have a name here."""

ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
PADDINGS = ("SAME", "VALID")

_ACTIVATION = ("activation", "b")
_WINDOW = {0: ("padding", "b"), 1: ("stride_w", "i"), 2: ("stride_h", "i")}

OPTIONS: Mapping[str, tuple[int, Mapping[int, tuple[str, str]]]] = {
    "ADD": (11, {0: _ACTIVATION}),
    "AVERAGE_POOL_2D": (5, {**_WINDOW, 3: ("filter_w", "i"), 4: ("filter_h", "i"), 5: _ACTIVATION}),
    "BATCH_MATMUL": (101, {0: ("adj_x", "?"), 1: ("adj_y", "?")}),
    "CONCATENATION": (10, {0: ("axis", "i"), 1: _ACTIVATION}),
    "CONV_2D": (1, {**_WINDOW, 3: _ACTIVATION, 4: ("dilation_w", "i"), 5: ("dilation_h", "i")}),
    "DEPTHWISE_CONV_2D": (
        2,
        {**_WINDOW, 3: ("depth_multiplier", "i"), 4: _ACTIVATION, 5: ("dilation_w", "i"), 6: ("dilation_h", "i")},
    ),
    "FULLY_CONNECTED": (8, {0: _ACTIVATION, 1: ("weights_format", "b"), 2: ("keep_dims", "?")}),
    "GELU": (116, {0: ("approximate", "?")}),
    "MAX_POOL_2D": (5, {**_WINDOW, 3: ("filter_w", "i"), 4: ("filter_h", "i"), 5: _ACTIVATION}),
    "MEAN": (27, {0: ("keep_dims", "?")}),
    "MUL": (21, {0: _ACTIVATION}),
    "RESIZE_NEAREST_NEIGHBOR": (74, {0: ("align_corners", "?"), 1: ("half_pixel_centers", "?")}),
    "SOFTMAX": (9, {0: ("beta", "f")}),
    "SUB": (28, {0: _ACTIVATION}),
}
"""Of an operator with options that matter: the number of their table in the union, and by field their name and format."""
